"""torchvision's data sets from where torchvision gets them, or from a mirror, into a local folder.

Runs in the task that prepares data sets, the only one that needs a way out.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from http.client import HTTPException
from io import StringIO
from pathlib import Path
from typing import Any

from contract.catalogue import Dataset
from contract.errors import TrainingFailed
from runtime.stored_dataset import torchvision_class

PAUSES_SECONDS = (5.0, 20.0)
"""Before trying again; what went wrong may be the network's doing, a checksum too."""

ANSWER_SECONDS = 20.0
"""How long a host may take to answer, or to go on."""


class NotDownloaded(TrainingFailed):
    """The archives could not be had, or are not those that torchvision knows."""


def download(
    dataset: Dataset, folder: Path, mirror: str, pause: Callable[[float], None] = time.sleep
) -> None:
    """Download a data set into `folder`, unpacked beside its archives, whose MD5 sums torchvision compares.

    `mirror`: URL below which the archives lie as <mirror>/<dataset>/<file>; empty: torchvision's own places. Raises
    NotDownloaded.
    """
    source = torchvision_class(dataset)
    if mirror:
        source = _mirrored(source, f"{mirror}/{dataset}")
    for pause_seconds in (*PAUSES_SECONDS, None):
        try:
            # torchvision draws progress bars: in a log they are lines without end.
            with _impatient(), redirect_stderr(StringIO()):
                source(folder, download=True)
            return
        except (OSError, RuntimeError, HTTPException) as error:
            if pause_seconds is None:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise NotDownloaded(
                    f"{dataset} could not be downloaded from {_origin(source)} in {len(PAUSES_SECONDS) + 1} attempts:"
                    f" {reason}"
                ) from error
        pause(pause_seconds)


def _mirrored(source: Any, base: str) -> Any:
    """A class of torchvision's with other URLs. Under its name: folders are called after it."""
    return type(
        source.__name__,
        (source,),
        {"url": f"{base}/{getattr(source, 'filename', '')}", "mirrors": [f"{base}/"]},
    )


def _origin(source: Any) -> str:
    """Where a class of torchvision's gets its archives."""
    return " or ".join(source.mirrors) if hasattr(source, "mirrors") else str(source.url)


@contextmanager
def _impatient() -> Iterator[None]:
    """Do not wait for ever, as torchvision does, on a host that does not answer, as one that no route leads to."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
