"""Tables of a study as files: summary.txt for people, summary.csv for spreadsheets, study.json for programs.

Pure: results → text. Text that came from logs or studies is defused for where it will be opened:
control characters for terminals, leading = + - @ for spreadsheets.
"""

import csv
import io
import json
from collections.abc import Sequence

from contract.results import experiment_file
from lambdas.publish_report.costs import cost_document
from lambdas.publish_report.endings import as_text
from lambdas.publish_report.findings import Findings
from lambdas.publish_report.labels import compression_label, labels_of
from lambdas.publish_report.notes import overload
from lambdas.publish_report.results import AsyncServerMetrics, ExperimentResult, StudyOutcome
from lambdas.publish_report.wording import ABSENT, number, one_line, verdict

TEXT_COLUMNS = ("Experiment", "Mode", "Workers", "Time(s)", "Epoch(s)", "Accuracy(%)")
LEFT_ALIGNED = 2
"""The first columns of summary.txt are words, the others figures."""

FORMULA_STARTS = ("=", "+", "-", "@")
"""What a spreadsheet takes for a formula (OWASP, CSV Injection)."""

PARTS = ("compute", "serialize", "transfer", "waiting", "evaluation")
"""What a worker's time goes to."""

Cell = str | int | float | None


def summary_text(outcome: StudyOutcome, results: Sequence[ExperimentResult]) -> str:
    """The classic table; an experiment that did not complete has no figures in it, and its cause below."""
    labels = labels_of(results)
    ended = verdict(outcome.status, [result.status for result in results])
    lines = [f"{outcome.name} ({outcome.study_id}): {ended}"]
    lines += [one_line(outcome.cause)] if outcome.cause else []
    lines += [*labels, ""]
    lines += _aligned([TEXT_COLUMNS, *map(_text_row, results)])
    unfinished = [result for result in results if not result.completed]
    if unfinished:
        lines += ["", f"Not completed: {len(unfinished)} of {len(results)}"]
        for result in unfinished:
            cause = one_line(result.cause) or "no cause known"
            lines += [f"  {result.experiment_name}: {result.status}: {cause}", *as_text(result)]
    if warnings := [*overload(results), *outcome.warnings]:
        lines += ["", "Warnings:", *(f"  {one_line(warning)}" for warning in warnings)]
    return "\n".join(lines) + "\n"


def _text_row(result: ExperimentResult) -> tuple[str, ...]:
    figures = (result.training_seconds, result.epoch_seconds, result.accuracy_percent)
    return (
        result.experiment_name,
        result.mode,
        str(result.total_workers),
        *(number(figure if result.completed else None) for figure in figures),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        [
            cell.ljust(width) if column < LEFT_ALIGNED else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    header, *body = ["  ".join(cells).rstrip() for cells in padded]
    return [header, "  ".join("-" * width for width in widths), *(body or [ABSENT])]


def summary_csv(results: Sequence[ExperimentResult]) -> str:
    """One row for every experiment, complete or not; an empty cell was not measured."""
    sheet = io.StringIO()
    rows = [_csv_row(result) for result in results]
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(rows[0] if rows else ["experiment"])
    writer.writerows([_defused(cell) for cell in row.values()] for row in rows)
    return sheet.getvalue()


def _csv_row(result: ExperimentResult) -> dict[str, Cell]:
    server, compute = result.server_metrics, result.compute
    stale = server if isinstance(server, AsyncServerMetrics) else None
    emulated = compute.mode == "emulated"
    expected = [emitter.expected for emitter in result.records]
    split, traffic, network = result.time_split, result.traffic, result.network
    return {
        "experiment": result.experiment_name,
        "mode": result.mode,
        "workers": result.total_workers,
        "seed": result.seed,
        "status": result.status,
        "training_time_seconds": result.training_seconds,
        "average_epoch_time_seconds": result.epoch_seconds,
        "final_test_accuracy_percent": result.accuracy_percent,
        "updates_per_second": server.updates_per_second,
        "mean_step_seconds": server.mean_step_seconds,
        "global_steps_completed": server.global_steps_completed,
        "gradients_processed": server.gradients_processed,
        "average_gradient_staleness": stale.average_gradient_staleness if stale else None,
        "average_gradient_staleness_all_training": (
            stale.average_gradient_staleness_all_training if stale else None
        ),
        "compute_mode": compute.mode,
        "emulated_distribution": compute.distribution if emulated else None,
        "emulated_mean_ms": compute.mean_ms if emulated else None,
        "compression": compression_label(result.exchange),
        "transport": "+".join(traffic.transports) if traffic else None,
        "injected_bandwidth_mbit_per_second": network.bandwidth_mbit_per_second,
        "injected_latency_ms": network.latency_ms or None,
        "injected_own_links": len(network.workers),
        "injected_crashes": len(result.faults.crashes),
        **{f"{part}_share": getattr(split, f"{part}_share") if split else None for part in PARTS},
        "sent_bytes_per_step": traffic.sent_bytes_per_step if traffic else None,
        "received_bytes_per_step": traffic.received_bytes_per_step if traffic else None,
        "dropped_gradients": server.dropped_gradients,
        "repeated_pushes": server.repeated_pushes,
        "losses_of_workers": None if server.lost_workers is None else len(server.lost_workers),
        "rejoined_workers": None if server.rejoined_workers is None else len(server.rejoined_workers),
        "lost_steps": server.lost_steps,
        "checkpoints_written": server.checkpoints_written,
        "records_received": sum(emitter.received for emitter in result.records),
        "records_expected": None if None in expected else sum(filter(None, expected)),
        "cause": one_line(result.cause),
    }


def _defused(cell: Cell) -> Cell:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it; numbers stay numbers."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def study_json(outcome: StudyOutcome, results: Sequence[ExperimentResult], found: Findings) -> str:
    """The study, what was found, and where the result of each experiment stands."""
    document = {
        "schema_version": 1,
        "study_id": outcome.study_id,
        "name": outcome.name,
        "status": outcome.status,
        "cause": outcome.cause,
        "started_at": outcome.started_at.isoformat(),
        "ended_at": outcome.ended_at.isoformat(),
        "study": dict(outcome.document),
        "findings": [found.headline, *found.sentences],
        "notes": list(found.notes),
        "warnings": [*found.warnings, *outcome.warnings],
        "cost": cost_document(outcome),
        "experiments": [
            {**_csv_row(result), "cause": result.cause, "file": experiment_file(result.experiment_name)}
            for result in results
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
