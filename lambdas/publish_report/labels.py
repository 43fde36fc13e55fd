"""Labels: what was emulated or injected in an experiment, and how gradients travelled, in words.

Pure text, the same in every part of the report: no figure that was measured under injected conditions stands
without its label.
"""

from collections.abc import Iterable

from contract.compute import Compute
from contract.exchange import Exchange
from contract.faults import Faults
from contract.network import Network
from lambdas.publish_report.results import ExperimentResult

UNCOMPRESSED = "fp32"
"""What travels where nothing is compressed."""

NOT_INJECTED = "not injected"

NAMED = 3
"""Crashes, stragglers or links that a label names one by one; of more it gives the number."""


def compute_label(compute: Compute) -> str:
    """How steps got their duration."""
    if compute.mode == "real":
        return "real compute"
    slow = [f"worker {each.rank} {each.slowdown:g}× slower" for each in compute.stragglers]
    if len(slow) > NAMED:
        slow = [f"{len(slow)} stragglers"]
    return ", ".join([f"emulated compute: {compute.distribution}, mean {compute.mean_ms:g} ms", *slow])


def compression_label(exchange: Exchange) -> str:
    """What gradients and parameters travel as: fp32, int8, topk 1 %."""
    if exchange.compression == "none":
        return UNCOMPRESSED
    if exchange.compression == "topk":
        return f"topk {100 * exchange.topk_ratio:g} %"
    return exchange.compression


def network_label(network: Network) -> str:
    """The link of each worker, where it is injected: 100 Mbit/s, 1 ms each way; worker 0: 10 Mbit/s."""
    own = [
        f"worker {each.rank}: {_link_label(network.of(each.rank)) or 'as it is'}" for each in network.workers
    ]
    if len(own) > NAMED:
        own = [f"{len(own)} workers with links of their own"]
    everybody = _link_label(network)
    return "; ".join([everybody, *own] if everybody else own) or NOT_INJECTED


def _link_label(network: Network) -> str:
    """What everybody's link is; empty where nothing is injected."""
    bandwidth = network.bandwidth_mbit_per_second
    parts = [f"{bandwidth:g} Mbit/s"] if bandwidth is not None else []
    parts += [f"{network.latency_ms:g} ms each way"] if network.latency_ms else []
    return ", ".join(parts)


def crashes_label(faults: Faults) -> str:
    """The crashes that were injected; empty where there were none."""
    if len(faults.crashes) > NAMED:
        return f"injected crashes: {len(faults.crashes)}"
    crashes = [
        f"worker {crash.rank} at step {crash.step}"
        + (f", back after {after:g} s" if (after := crash.restart_after_seconds) is not None else "")
        for crash in faults.crashes
    ]
    return f"injected crashes: {'; '.join(crashes)}" if crashes else ""


def labels_of(results: Iterable[ExperimentResult]) -> list[str]:
    """What must be known of experiments that are shown together: first how steps got their duration."""
    results = list(results)
    networks = {network_label(result.network) for result in results if result.network.injected}
    all_alike = len({network_label(result.network) for result in results}) == 1
    network = networks.pop() if all_alike and networks else "differs between experiments" if networks else ""
    return [
        *sorted({compute_label(result.compute) for result in results}),
        *([f"injected network: {network}"] if network else []),
        *sorted({label for result in results if (label := crashes_label(result.faults))}),
    ]
