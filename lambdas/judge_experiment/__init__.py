"""JudgeExperiment: end an experiment's tasks, then write COMPLETED or FAILED with the root cause."""
