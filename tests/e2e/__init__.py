"""The whole chain on the embedded cloud: deployed stack, state machine, functions, training tasks, report."""
