"""torchvision, imported when it is first needed.

Runs on both sides. Its import takes seconds, which the built-in data sets and models need not spend.
"""

from functools import cache
from typing import Any

import torch

_MISSING = "torchvision::nms does not exist"


@cache
def import_torchvision() -> Any:
    """The package, with its `models` and `datasets`."""
    try:
        import torchvision  # noqa: PLC0415 - see above
    except RuntimeError as error:
        # torchvision from PyPI is built against CUDA's torch. Beside a CPU build its library does not load, and
        # its import then fails on two operators that neither models nor data sets call.
        if _MISSING not in str(error):
            raise
        _declare_operators()
        import torchvision  # noqa: PLC0415
    return torchvision


@cache
def _declare_operators() -> torch.library.Library:
    """Declare them, so that they need not be there."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # untyped in torch
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(schema)  # type: ignore[no-untyped-call]  # untyped in torch
    return library  # kept by the cache: what was declared is undone when its library is collected
