"""How long the steps of a study may take before they are given up.

Pure. The state machine's limits and the runtime's patience; what plans add up.
"""

from typing import Final

LAUNCH_SECONDS: Final = 900
"""Longest way of a task to its first line of Python: a throttled RunTask, capacity, a network interface, the image, and
another start where one came to nothing. So long the state machine waits for a server, and a server for its workers."""

ENDING_SECONDS: Final = 120
"""Longest way of a task that has given up to its end: last words to its peers, last records, its stop timeout."""

JUDGING_SECONDS: Final = 270
"""The state that judges an experiment."""

PREPARING_SECONDS: Final = 3600
"""The task that prepares a data set: a download."""

AROUND_SECONDS: Final = 1500
"""The states before and after the experiments, but for that task: plan, reconcile, publish, conclude."""
