"""Render a study: one outcome in, all files of its results tree out.

Pure. Failures come first in the page, then what was found, then what it rests on; every text from logs or
studies is escaped by the template.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from contract.results import (
    REPORT,
    STUDY_JSON,
    SUMMARY_CSV,
    SUMMARY_TEXT,
    comparison_plot,
    experiment_file,
    scaling_plot,
    side_by_side_plot,
)
from lambdas.publish_report import endings, sections, spending
from lambdas.publish_report.aggregation import experiment_result
from lambdas.publish_report.conditions import Condition, pictured
from lambdas.publish_report.costs import costs
from lambdas.publish_report.findings import Findings, findings
from lambdas.publish_report.inline import inline_svg
from lambdas.publish_report.labels import labels_of
from lambdas.publish_report.plots import plots
from lambdas.publish_report.rankings import side_by_side
from lambdas.publish_report.results import ExperimentResult, StudyOutcome
from lambdas.publish_report.tables import study_json, summary_csv, summary_text
from lambdas.publish_report.wording import count, verdict

TEMPLATE = "report.html.j2"


def render(outcome: StudyOutcome) -> dict[str, bytes]:
    """Path below the study's folder → content: every file that contract.results names.

    The same outcome gives the same bytes, in whatever order records arrived. Raises nothing for missing
    records or failed experiments: what is not there is shown as not there.
    """
    results = [experiment_result(experiment) for experiment in outcome.experiments]
    found = findings(results)
    drawn = plots(results)
    files = {
        SUMMARY_TEXT: summary_text(outcome, results).encode(),
        SUMMARY_CSV: summary_csv(results).encode(),
        STUDY_JSON: study_json(outcome, results, found).encode(),
        REPORT: _page(outcome, results, found, drawn).encode(),
    }
    for result in results:
        files[experiment_file(result.experiment_name)] = (result.model_dump_json(indent=2) + "\n").encode()
    return files | drawn


def _page(
    outcome: StudyOutcome,
    results: Sequence[ExperimentResult],
    found: Findings,
    drawn: Mapping[str, bytes],
) -> str:
    return (
        _template_environment()
        .get_template(TEMPLATE)
        .render(
            outcome=outcome,
            duration=_duration((outcome.ended_at - outcome.started_at).total_seconds()),
            labels=labels_of(results),
            emulated=any(result.compute.mode == "emulated" for result in results),
            network_injected=any(result.network.injected for result in results),
            crashes_injected=any(result.faults.crashes for result in results),
            experiments=count(len(results), "experiment"),
            unfinished=[result for result in results if not result.completed],
            verdict=verdict(outcome.status, [result.status for result in results]),
            found=found,
            summary=sections.summary(results),
            figures=_figures(results, drawn),
            laws=sections.laws(results),
            parts=spending.PARTS,
            time_split=spending.time_split(results),
            traffic=spending.traffic(results),
            waits=spending.waits(results),
            losses=spending.losses(results),
            costs=costs(outcome),
            notices=sections.notices(outcome, results),
            data_quality=sections.data_quality(results),
            provenance=sections.provenance(outcome, results),
            document=_document(outcome.document),
            downloads=_downloads(results, drawn),
        )
    )


def _template_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lambdas.publish_report", package_path="."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["units"] = _with_units
    environment.globals["task_name"] = sections.task_name
    environment.globals["task_ends"] = endings.task_ends
    environment.globals["last_lines"] = endings.last_lines
    return environment


def _with_units(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(
        r"(?<=\d) (?=(?:%|s|ms|workers?|cores?|processes|points|seeds|[kMG]?B|Mbit/s|steps?)\b|%)",
        "\N{NO-BREAK SPACE}",
        text,
    )


def _document(document: Mapping[str, Any]) -> str:
    """Indented JSON with short lists on one line. A line break is never inside a JSON string."""
    text = json.dumps(dict(document), indent=2, ensure_ascii=False)
    return re.sub(r"\[\n[^\[\]{}]*\n\s*\]", _joined_lines, text)


def _joined_lines(match: re.Match[str]) -> str:
    opening, *elements, closing = (line.strip() for line in match[0].split("\n"))
    return opening + " ".join(elements) + closing


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _figures(results: Sequence[ExperimentResult], drawn: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Each plot with what it says in words and in numbers."""
    groups = side_by_side(results)
    table = sections.scaling_figures(results)
    # Over one number of workers there is no scaling to be seen: the figures stand with the plot of all conditions.
    scales = not groups or len({result.total_workers for result in results if result.completed}) > 1
    figures = [
        _figure(
            side_by_side_plot(group[0].workers, "svg"),
            f"all{group[0].workers}",
            TOGETHER_LABEL,
            None if scales else table,
            drawn,
        )
        for group in reversed(groups)
    ]
    if scales:
        figures.append(_figure(scaling_plot("svg"), "scaling", SCALING_LABEL, table, drawn))
    for sync, asynchronous in pictured(results):
        figures.append(_comparison_figure(sync, asynchronous, drawn))
    return figures


TOGETHER_LABEL = (
    "Two panels with a row for each condition: a bar for its total training time, a marker for its final test"
    " accuracy. The figures stand in the table below, or in that of the scaling plot."
)

SCALING_LABEL = (
    "Four panels against the number of workers, one line for each mode: total training time, average epoch time,"
    " final test accuracy, and speed-up with the ideal line. The figures stand in the table below."
)


def _comparison_figure(
    sync: Condition, asynchronous: Condition, drawn: Mapping[str, bytes]
) -> dict[str, Any]:
    label = (
        f"Four panels comparing sync and async with {count(sync.workers, 'worker')}: total training time,"
        " average epoch time, and over the epochs their duration and the test accuracy. The figures stand in"
        " the summary table and in the table below."
    )
    table = sections.comparison_figures(sync, asynchronous)
    return _figure(comparison_plot(sync.workers, "svg"), f"compare{sync.workers}", label, table, drawn)


def _figure(
    path: str, name: str, label: str, table: sections.Table | None, drawn: Mapping[str, bytes]
) -> dict[str, Any]:
    svg: Markup = inline_svg(drawn[path], name, label)
    return {"svg": svg, "table": table, "path": path}


def _downloads(
    results: Sequence[ExperimentResult], drawn: Mapping[str, bytes]
) -> list[tuple[str, list[str]]]:
    return [
        ("Tables", [SUMMARY_CSV, SUMMARY_TEXT]),
        ("Study", [STUDY_JSON]),
        ("Experiments", [experiment_file(result.experiment_name) for result in results]),
        ("Plots", sorted(drawn)),
    ]
