"""The state machine: one valid ASL document, and the few lines that load and render it.

Read by CDK (which substitutes at deploy time) and by tests; knows nothing of what the names stand for.
"""

import re
from collections.abc import Mapping
from pathlib import Path

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def definition() -> str:
    """The ASL document with its `${Name}` placeholders."""
    return (Path(__file__).parent / "experiments.asl.json").read_text(encoding="utf-8")


def placeholders() -> set[str]:
    """The names that a deployment must substitute."""
    return set(_PLACEHOLDER.findall(definition()))


def render(substitutions: Mapping[str, str]) -> str:
    """The document with every placeholder replaced. Raises KeyError for a name that is not given.

    Not string.Template: JSONata's own `$` would be taken for a placeholder.
    """
    return _PLACEHOLDER.sub(lambda match: substitutions[match[1]], definition())
