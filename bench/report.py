"""From the committed results to docs/benchmarks.md and README.md: text between markers, and a plot.

Reads and writes files; measures nothing.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import sections
from bench.demands import Demand, demands_of, demands_section
from bench.plot import plot_push_pull
from bench.summary import summary

SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "push-pull": sections.push_pull_section,
    "parts": sections.parts_section,
    "epoch": sections.epoch_section,
    "instrumentation": sections.instrumentation_section,
    "blocks": sections.blocks_section,
    "memory": sections.memory_section,
    "compression": sections.compression_section,
}
"""By what was measured, as the command line calls it; so are the markers."""

DEMANDS = "demands"
"""The marker of what is computed from all of them."""

MEASURED = "measured"
"""The marker of the summary in README.md."""


def file_name(what: str) -> str:
    """Of the results of a measurement."""
    return f"{what.replace('-', '_')}.json"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured → what was found, of all that there is."""
    results = {}
    for what in SECTIONS:
        path = folder / file_name(what)
        if path.exists():
            results[what] = json.loads(path.read_text(encoding="utf-8"))
    return results


def write_report(results: Mapping[str, Mapping[str, Any]], root: Path) -> list[Demand]:
    """Fill in README.md and docs/benchmarks.md, draw docs/images/push_pull.svg; returns what must be shown.

    `root`: of the repository.
    """
    readme, docs = root / "README.md", root / "docs"
    readme.write_text(
        filled(readme.read_text(encoding="utf-8"), MEASURED, summary(results)), encoding="utf-8"
    )
    page = docs / "benchmarks.md"
    text = filled(page.read_text(encoding="utf-8"), DEMANDS, demands_section(results))
    for what, found in results.items():
        text = filled(text, what, SECTIONS[what](found))
    if "push-pull" in results:
        plot_push_pull(results["push-pull"]["rows"], docs / "images" / "push_pull.svg")
    page.write_text(text, encoding="utf-8")
    return demands_of(results)


def filled(text: str, name: str, content: str) -> str:
    """The page with `content` between the markers of that name. Raises ValueError if they are not there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page lacks '{begin}' … '{end}'")
    return pattern.sub(lambda _: f"{begin}\n{content.strip()}\n{end}", text)
