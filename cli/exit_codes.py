"""Exit statuses of the command; part of its interface.

130 and 143 are what a shell reports for programs that SIGINT and SIGTERM have ended.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command ends with."""

    DONE = 0
    FAILED = 1
    """Something else went wrong: no credentials, no deployment, the embedded cloud did not start."""
    REFUSED = 2
    """The input is at fault; nothing was started."""
    STUDY_FAILED = 3
    """The study ran and failed; its report is there."""
    INTERRUPTED = 130
    TERMINATED = 143
