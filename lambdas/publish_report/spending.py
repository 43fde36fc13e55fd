"""Tables of report.html on what training spent: time and bytes, and what was lost.

Pure: results → text cells, as in `sections`.
"""

from collections.abc import Iterable, Sequence

from contract.aggregation import BARRIER_MODES, Mode
from lambdas.publish_report.estimates import quantile
from lambdas.publish_report.labels import compression_label, network_label
from lambdas.publish_report.results import ExperimentResult
from lambdas.publish_report.sections import Column, Table, task_name
from lambdas.publish_report.wording import ABSENT, byte_count, listed, number, seconds, share

HOLDING_MODES = BARRIER_MODES | {Mode.SSP}
"""Modes in which the server holds gradients back: at a barrier, or at the bound of ssp."""

QUANTILES = {"Half": 0.5, "90 %": 0.9, "99 %": 0.99, "All": 1.0}

TRANSPORTS = {"tcp": "TCP", "tls": "TLS", "shared-memory": "shared memory"}


PARTS = ("Compute", "Serialize", "Transfer", "Waiting", "Evaluation")


def time_split(results: Iterable[ExperimentResult]) -> Table:
    """What the workers' time went to."""
    rows, bars = [], []
    for result in results:
        if (split := result.time_split) is not None:
            shares = [getattr(split, f"{part.lower()}_share") for part in PARTS]
            rows.append([result.experiment_name, *map(share, shares)])
            bars.append([value or 0.0 for value in shares])
    columns = [Column("Experiment"), *(Column(part, "figure") for part in PARTS)]
    caption = (
        "Shares of the time of all workers together. Serialize: encoding, decoding and copying gradients and"
        " parameters. Transfer: the rest of the round trips to the server, on the way and being applied. Waiting:"
        " gradients that the server held back before it answered. Evaluation: testing, each worker its share."
    )
    return Table(caption, columns, rows, bars)


def waits(results: Iterable[ExperimentResult]) -> Table:
    """How long gradients were held at barriers and at bounds, in modes that hold them."""
    rows = []
    for result in results:
        histogram = result.server_metrics.barrier_wait_histogram
        if result.mode in HOLDING_MODES and result.total_workers > 1 and histogram:
            held = [seconds(quantile(histogram, share)) for share in QUANTILES.values()]
            rows.append([result.experiment_name, f"{sum(histogram.values()):,}", *held])
    columns = [Column("Experiment"), Column("Gradients", "figure")]
    columns += [Column(name, "figure") for name in QUANTILES]
    caption = (
        "How long a gradient was held back, from its arrival until its worker could go on: at most so long were half,"
        " nine of ten, ninety-nine of a hundred, and all of them. Upper bounds of bins that double: 1 ms, 2 ms, 4 ms …"
    )
    return Table(caption, columns, rows)


def traffic(results: Iterable[ExperimentResult]) -> Table:
    """How gradients and parameters travelled, and how many bytes that took."""
    rows = []
    for result in results:
        if (measured := result.traffic) is not None:
            shared = measured.transports == ["shared-memory"]
            amounts = (measured.sent_bytes_per_step, measured.received_bytes_per_step)
            rows.append(
                [
                    result.experiment_name,
                    compression_label(result.exchange),
                    network_label(result.network),
                    listed([TRANSPORTS.get(name, name) for name in measured.transports]) or ABSENT,
                    *(byte_count(None if shared else amount) for amount in amounts),
                ]
            )
    columns = [
        Column("Experiment"),
        Column("Encoding"),
        Column("Network"),
        Column("Transport"),
        Column("To the server", "figure"),
        Column("From the server", "figure"),
    ]
    caption = (
        "Bytes for each step of a worker, gradients one way and parameters the other, of the workers that finished;"
        " of what went through shared memory nothing is counted."
    )
    return Table(caption, columns, rows)


def losses(results: Iterable[ExperimentResult]) -> Table:
    """Experiments of which something was lost, dropped, repeated or kept in checkpoints; no rows where nothing was."""
    rows = [_losses_row(result) for result in results if _eventful(result)]
    columns = [
        Column("Experiment"),
        Column("Lost"),
        Column("Came back"),
        Column("Steps lost", "figure"),
        Column("Too late", "figure"),
        Column("Repeated", "figure"),
        Column("Checkpoints", "figure"),
    ]
    caption = (
        "Lost, came back: workers, in the order of time. Steps lost: never made, because their worker was away. Too"
        " late: gradients that came when their step was over, and were dropped. Repeated: pushes that were made again"
        " because the answer was lost, and applied once. Checkpoints: how many the server wrote, and the time that"
        " took beside training."
    )
    return Table(caption, columns, rows)


def _eventful(result: ExperimentResult) -> bool:
    server = result.server_metrics
    lost = server.lost_workers or result.on_worker_loss == "continue"
    counted = server.dropped_gradients or server.repeated_pushes or server.checkpoints_written
    return bool(lost or counted)


def _losses_row(result: ExperimentResult) -> list[str]:
    server = result.server_metrics
    checkpoints = ABSENT
    if server.checkpoints_written is not None and result.checkpoint is not None:
        checkpoints = f"{server.checkpoints_written:,} ({seconds(server.checkpoint_seconds)})"
    if server.resumed_from_version is not None:
        checkpoints += f", resumed from version {server.resumed_from_version:,}"
    return [
        result.experiment_name,
        _workers(server.lost_workers),
        _workers(server.rejoined_workers),
        *(
            number(figure, 0)
            for figure in (server.lost_steps, server.dropped_gradients, server.repeated_pushes)
        ),
        checkpoints,
    ]


def _workers(ranks: Sequence[int] | None) -> str:
    if ranks is None:
        return ABSENT
    return listed([task_name("worker", rank) for rank in ranks]) or "none"
