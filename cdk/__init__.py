"""The AWS stack: one file per concern, composed and granted in stack.py.

Runs at synth time. Makes no AWS call, needs no Docker; names handlers by string and knows none of their code.
This module is imported elsewhere too, and so does not import aws_cdk, which starts a Node.js process.
"""

from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent

EMBEDDED_CLOUD: Final = "EmbeddedCloud"
"""The template's parameter that leaves out, behind one condition, what the embedded cloud cannot take."""


def only(*folders: str) -> list[str]:
    """Exclude patterns (git ignore syntax) of an asset that takes these folders of the repository alone."""
    kept = [pattern for folder in folders for pattern in (f"!{folder}", f"!{folder}/**")]
    return ["*", *kept, "__pycache__", "*.pyc"]
