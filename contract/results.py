"""Names in the results tree of a study, the same in S3 and on disk.

    studies/<study>/report.html  summary.csv  summary.txt  study.json  experiments/<name>.json  plots/…

Used by publish_report and by the command line.
"""

from typing import Final

STUDIES: Final = "studies"
REPORT: Final = "report.html"
SUMMARY_CSV: Final = "summary.csv"
SUMMARY_TEXT: Final = "summary.txt"
STUDY_JSON: Final = "study.json"

DATASETS: Final = "datasets"
"""The prefix of the same bucket that workers may read data sets from."""


def study_prefix(study_id: str) -> str:
    """S3 prefix of a study's results, with its closing slash."""
    return f"{STUDIES}/{study_id}/"


def experiment_file(experiment: str) -> str:
    """Path of one experiment's result below the study's folder."""
    return f"experiments/{experiment}.json"


def comparison_plot(workers: int, suffix: str = "png") -> str:
    """Path of the sync-against-async plot for one number of workers."""
    return f"plots/sync_vs_async_{workers}workers.{suffix}"


def scaling_plot(suffix: str = "png") -> str:
    """Path of the plot against the number of workers."""
    return f"plots/scaling_analysis.{suffix}"


def side_by_side_plot(workers: int, suffix: str = "png") -> str:
    """Path of the plot of all conditions with one number of workers."""
    return f"plots/side_by_side_{workers}workers.{suffix}"
