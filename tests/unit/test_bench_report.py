import json
import shutil
from pathlib import Path

import pytest

from bench.__main__ import BUDGETS
from bench.case import SIZES
from bench.demands import demands_section
from bench.report import SECTIONS, filled, read_results, write_report
from bench.sections import (
    blocks_section,
    compression_section,
    epoch_section,
    memory_section,
    parts_section,
    push_pull_section,
    size_table,
)
from bench.summary import summary
from bench.tables import machine_line, table, time_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
MACHINE = json.loads((RESULTS / "push_pull.json").read_text())["machine"]


def row(system: str, workers: int, rate: float, **other: object) -> dict[str, object]:
    return {
        "system": system,
        "transport": "tcp",
        "parameters": 1_000_000,
        "workers": workers,
        "variant": "tuned malloc",
        "rounds": 5,
        "updates_per_second": rate,
        "updates_per_second_quartiles": [rate * 0.9, rate * 1.1],
        "ratio_to_raw_tcp": 0.5,
        "server_cpu_seconds_per_gb": 0.25,
        "server_peak_bytes": 6_000_000,
        **other,
    }


def test_the_committed_page_shows_the_committed_results(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "benchmarks.md", docs)
    shutil.copy(ROOT / "README.md", tmp_path)
    write_report(read_results(RESULTS), tmp_path)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert (docs / "benchmarks.md").read_text() == (ROOT / "docs" / "benchmarks.md").read_text()
    drawn, committed = (folder / "images" / "push_pull.svg" for folder in (docs, ROOT / "docs"))
    assert drawn.read_text() == committed.read_text()


def test_a_table_has_a_line_per_system_and_a_column_per_number_of_workers() -> None:
    rows = [row("Lockstep", 1, 1234), row("Lockstep", 16, 56.78), row("peer", 1, 7.891)]
    lines = size_table(rows).splitlines()
    assert lines[0].startswith("| system | updates/s, 1 worker | updates/s, 16 workers |")
    assert lines[2] == (
        "| **Lockstep (tcp)** | 1,230 (1,110–1,360) | 56.8 (51.1–62.5) | 0.50 | 0.25 | 1.5 | tuned malloc |"
    )
    assert lines[3] == "| peer (tcp) | 7.89 (7.10–8.68) | – | 0.50 | 0.25 | – | tuned malloc |"


def test_a_system_without_a_server_has_no_costs() -> None:
    (line,) = size_table(
        [row("Gloo", 1, 10, server_cpu_seconds_per_gb=None, server_peak_bytes=None)]
    ).splitlines()[2:]
    assert line.endswith("| 0.50 | – | – | tuned malloc |")


def test_what_was_not_measured_is_said_before_the_figures() -> None:
    found = {
        "machine": MACHINE,
        "settings": {"seconds": 0.5},
        "skipped": {"Ray actor (object store)": "Ray is not installed"},
        "failed": [
            {
                "system": "torch RPC (tcp)",
                "variant": "tuned malloc",
                "parameters": 62_006,
                "workers": 4,
                "reason": "it broke",
            }
        ],
        "rows": [row("Lockstep", 1, 10)],
    }
    section = push_pull_section(found)
    assert "5 rounds of about 0.5 s." in section
    assert "**Not measured:** Ray actor (object store). Ray is not installed" in section
    assert "**Failed:** torch RPC (tcp), tuned malloc, 62k parameters, 4 workers: it broke" in section
    assert section.index("it broke") < section.index("### 1M parameters, 4 MB")


def test_everything_that_is_measured_is_on_the_page() -> None:
    page, results = (ROOT / "docs" / "benchmarks.md").read_text(), read_results(RESULTS)
    assert results
    for what, found in results.items():
        assert SECTIONS[what](found).strip() in page
    assert demands_section(results) in page
    assert summary(results) in (ROOT / "README.md").read_text()


def test_the_readme_says_what_was_measured_and_over_which_transport() -> None:
    trained = {
        "workload": "w",
        "parameters": 1000,
        "workers": 4,
        "system": "Lockstep sync (tcp)",
        "ratio_to_ddp": 0.5,
    }
    held = {
        "parameters": SIZES["11.2M"],
        "workers": 16,
        "mode": "sync",
        "transport": "tcp",
        "compression": "fp16",
    }
    held |= {"private": 3.0, "longer_private": 3.14}
    results = {"epoch": {"rows": [trained]}, "memory": {"rows": [held]}}
    assert summary(results).splitlines() == [
        "- an epoch of sync with 4 workers, TCP, beside PyTorch's DDP over Gloo:"
        " 0.50 (w, 1,000 parameters) times as long;",
        "- the server's own memory with 16 workers, in models of 44.7 MB: 3.1 (sync, TCP and fp16);",
    ]
    assert summary({}) == ""


def test_the_page_has_a_place_for_everything_that_can_be_measured() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert set(SECTIONS) == set(BUDGETS)
    for what in SECTIONS:
        assert f"<!-- {what}: begin -->" in page


def test_blocks_have_a_line_per_length_and_one_for_none() -> None:
    def block_row(parameters: int, length: int, rate: float, *, own: bool = False) -> dict[str, object]:
        lengths = {"block_length": length, "blocks": -(-parameters // length), "is_runtimes": own}
        return row("Lockstep", 1, rate, parameters=parameters, **lengths)

    rows = [
        block_row(62_006, 1 << 14, 100),
        block_row(62_006, 62_006, 200, own=True),
        block_row(1_000_000, 1 << 18, 50, own=True),
        block_row(1_000_000, 1_000_000, 40),
    ]
    section = blocks_section({"machine": MACHINE, "settings": {"seconds": 0.5}, "rows": rows})
    assert section.splitlines()[-5:] == [
        "| block | 62k, tcp | 1M, tcp |",
        "| --- | ---: | ---: |",
        "| 64 KiB | 100 (90.0–110) | – |",
        "| 1 MiB | – | **50.0 (45.0–55.0)** |",
        "| one block | **200 (180–220)** | 40.0 (36.0–44.0) |",
    ]


def test_times_have_a_unit_that_fits() -> None:
    assert time_text(0.0000021) == "2.10 µs"
    assert time_text(0.0165) == "16.5 ms"


def test_epochs_stand_beside_ddps() -> None:
    ran = {
        "workload": "w",
        "dataset": "d",
        "parameters": 10,
        "rounds": 3,
        "last_loss": 0.5,
        "variant": "tuned malloc",
    }
    rows = [
        ran
        | {
            "system": system,
            "epoch_seconds": seconds,
            "epoch_seconds_quartiles": [seconds] * 2,
            "ratio_to_ddp": seconds,
        }
        for system, seconds in (("Lockstep sync (tcp)", 1.5), ("PyTorch DDP (Gloo)", 1.0))
    ]
    section = epoch_section({"machine": MACHINE, "rows": rows})
    assert section.splitlines()[-2:] == [
        "| w, d | 10 | **Lockstep sync (tcp)** | 1.50 (1.50–1.50) | 1.50 | 3 | 0.5000 | tuned malloc |",
        "| w, d | 10 | PyTorch DDP (Gloo) | 1.00 (1.00–1.00) | 1.00 | 3 | 0.5000 | tuned malloc |",
    ]


def test_memory_says_what_travels_how() -> None:
    row = {"mode": "async", "transport": "tcp", "compression": "fp16", "parameters": 1_000_000, "workers": 16}
    row |= {"steps": 4, "resident": 18.3, "private": 18.2, "proportional": 18.2}
    row |= {"longer_steps": 12, "longer_resident": 18.4, "longer_private": 18.3}
    section = memory_section({"machine": MACHINE, "rows": [row]})
    assert section.endswith("| async, tcp, fp16 | 1M | 16 | 18.3 | 18.2 | 18.2 | 3 | 18.4 | 18.3 |")


def test_every_training_has_a_table_of_its_codecs() -> None:
    def codec(mode: str, name: str, **other: object) -> dict[str, object]:
        return {
            "compression": name,
            "mode": mode,
            "model": "mlp",
            "dataset": "digits",
            "parameters": 85_002,
            "workers": 4,
            "epochs": 10,
            "mbit_per_second": 100.0,
            "seeds": 3,
            "epoch_seconds": 0.5,
            "epoch_seconds_quartiles": [0.4, 0.6],
            "times_shorter": 3.0,
            "bytes_per_step": 15_200.0,
            "accuracy": 96.0,
            "accuracy_difference": -0.5,
            "accuracy_differences": [-1.0, 0.0],
            "accuracy_interval": None,
            **other,
        }

    rows = [
        codec("sync", "none"),
        codec("sync", "topk", accuracy_interval=[-1.7, 0.7]),
        codec("async", "int8"),
    ]
    section = compression_section({"machine": MACHINE, "settings": {"topk_ratio": 0.01}, "rows": rows})
    assert section.count("| compression |") == 2
    assert (
        "**mlp on digits, async**: 85,002 parameters, 4 workers, 10 epochs, 100 Mbit/s each way, 3 seeds."
        in section
    )
    assert (
        "| topk | 0.500 (0.400–0.600) | 3.0 | 15.2 kB | 96.00 % | -0.50 | -1.70 to +0.70 | -1.00 to +0.00 |"
        in section
    )
    assert section.endswith(
        "| int8 | 0.500 (0.400–0.600) | 3.0 | 15.2 kB | 96.00 % | -0.50 | – | -1.00 to +0.00 |"
    )


def test_parts_are_added_up() -> None:
    row = {"parameters": 1_000_000, "check_seconds": 1e-4, "apply_seconds": 2e-4, "copy_seconds": 3e-3}
    section = parts_section({"machine": MACHINE, "rows": [row]})
    assert section.endswith("| 1M | 100 µs | 200 µs | 3.00 ms | 3.30 ms |")


def test_when_it_was_measured_stands_before_the_machine() -> None:
    assert machine_line(MACHINE | {"date": "2026-11-25"}).startswith("Measured on 2026-11-25. Machine: ")


def test_only_what_stands_between_the_markers_changes() -> None:
    page = "before\n<!-- epoch: begin -->\nold\n<!-- epoch: end -->\nafter"
    new = filled(page, "epoch", r"new \1")
    assert new == "before\n<!-- epoch: begin -->\nnew \\1\n<!-- epoch: end -->\nafter"
    assert filled(new, "epoch", r"new \1") == new
    with pytest.raises(ValueError, match="the page lacks '<!-- push-pull: begin -->'"):
        filled(page, "push-pull", "")


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
