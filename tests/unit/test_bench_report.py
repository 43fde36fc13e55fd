import json
import shutil
from pathlib import Path

import pytest

from bench.report import SECTIONS, file_name, filled, write_report
from bench.sections import blocks_section, epoch_section, push_pull_section, size_table
from bench.tables import table, time_text

ROOT = Path(__file__).parents[2]


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
    write_report(ROOT / "bench" / "results", docs)
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
        "machine": json.loads((ROOT / "bench" / "results" / "push_pull.json").read_text())["machine"],
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


@pytest.mark.parametrize("what", SECTIONS)
def test_everything_that_is_measured_is_on_the_page(what: str) -> None:
    found = json.loads((ROOT / "bench" / "results" / file_name(what)).read_text())
    assert SECTIONS[what](found).strip() in (ROOT / "docs" / "benchmarks.md").read_text()


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
    machine = json.loads((ROOT / "bench" / "results" / "blocks.json").read_text())["machine"]
    section = blocks_section({"machine": machine, "settings": {"seconds": 0.5}, "rows": rows})
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
    results = json.loads((ROOT / "bench" / "results" / "epoch.json").read_text())
    section = epoch_section(results)
    assert section.count("| **Lockstep sync** |") == len(results["rows"]) / 2


def test_only_what_stands_between_the_markers_changes() -> None:
    page = "before\n<!-- epoch: begin -->\nold\n<!-- epoch: end -->\nafter"
    new = filled(page, "epoch", r"new \1")
    assert new == "before\n<!-- epoch: begin -->\nnew \\1\n<!-- epoch: end -->\nafter"
    assert filled(new, "epoch", r"new \1") == new
    with pytest.raises(ValueError, match="the page lacks '<!-- push-pull: begin -->'"):
        filled(page, "push-pull", "")


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
