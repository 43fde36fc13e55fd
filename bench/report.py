"""From the committed results to docs/benchmarks.md: tables between markers, and a plot.

Reads and writes files; measures nothing.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import sections
from bench.plot import plot_push_pull

SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "push-pull": sections.push_pull_section,
    "epoch": sections.epoch_section,
    "instrumentation": sections.instrumentation_section,
    "blocks": sections.blocks_section,
    "memory": sections.memory_section,
    "compression": sections.compression_section,
}
"""By what was measured, as the command line calls it; so are the markers."""


def file_name(what: str) -> str:
    """Of the results of a measurement."""
    return f"{what.replace('-', '_')}.json"


def write_report(results: Path, docs: Path) -> None:
    """Fill in docs/benchmarks.md and draw docs/images/push_pull.svg from the results that there are."""
    page = docs / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    for what, section in SECTIONS.items():
        if found := _read(results / file_name(what)):
            text = filled(text, what, section(found))
            if what == "push-pull":
                plot_push_pull(found["rows"], docs / "images" / "push_pull.svg")
    page.write_text(text, encoding="utf-8")


def filled(text: str, name: str, content: str) -> str:
    """The page with `content` between the markers of that name. Raises ValueError if they are not there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page lacks '{begin}' … '{end}'")
    return pattern.sub(lambda _: f"{begin}\n{content.strip()}\n{end}", text)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
