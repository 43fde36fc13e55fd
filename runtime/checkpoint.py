"""A checkpoint as bytes: a safetensors file that knows whose it is, with a checksum over every other byte of it.

Runs in the server; pure: knows nothing of files or S3. Never pickle: a checkpoint is read by whoever finds it.

The format (8 bytes of header length, a JSON header, raw little-endian data) is written and read here, not by
safetensors' library: for 134 MB its `save` and `load` each copy all of it and hold the interpreter's lock for 75 ms,
in which no push is answered, and a checksum that it writes cannot cover the header. The tests read these files
with the library and the library's with this module.
https://huggingface.co/docs/safetensors/index#format

The checksum is CRC-32. It meets torn and rotten files, not forgers, who could compute any sum without a key; of what
Python brings it is the fastest (2.9 GB/s here; SHA-256 0.8 with the CPU's instructions for it, BLAKE2b 0.55).
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

FORMAT: Final = "2"
"""Version of what the metadata and facts hold; a file of another one is refused."""

_TYPES: Final = {torch.float32: "F32", torch.int64: "I64"}
_NUMPY: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}

_METADATA: Final = "__metadata__"
_START: Final = f'{{"{_METADATA}":{{"crc32":"'.encode()
"""How every header starts: the checksum stands at the same place in every file."""
_LENGTH: Final = 8
_CHECKSUM: Final = slice(_LENGTH + len(_START), _LENGTH + len(_START) + 8)


class CheckpointDamaged(Exception):
    """These bytes are not a whole checkpoint of this experiment; the message says what is wrong."""


@dataclass(frozen=True)
class Owner:
    """Whose checkpoint it is."""

    study: str
    experiment: str


@dataclass(frozen=True)
class Checkpoint:
    """What a server must know to go on."""

    tensors: Mapping[str, Tensor]
    """Flat, contiguous, fp32 or int64, on the CPU."""
    facts: dict[str, Any]
    """Anything that JSON keeps as it is: keys are strings, no tuples, no NaN."""


def dump(checkpoint: Checkpoint, owner: Owner) -> Sequence[memoryview]:
    """The file, in pieces to be written one after the other: its header, then each tensor's own memory, uncopied.

    The tensors must not change until it is written. Raises ValueError, or json's TypeError, for what a checkpoint
    cannot hold.
    """
    # Wide elements first, as the format's library does: every tensor is then aligned to its elements.
    tensors = dict(sorted(checkpoint.tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    for name, tensor in tensors.items():
        _check(name, tensor)
    header = bytearray(_header(tensors, _facts_text(checkpoint.facts), owner))
    pieces = [memoryview(header), *map(_memory_of, tensors.values())]
    header[_CHECKSUM] = _checksum(pieces)
    return pieces


def load(data: bytearray | memoryview, owner: Owner) -> Checkpoint:
    """The checkpoint in `data`, which must be writable: the tensors are views into it. Raises CheckpointDamaged."""
    view = memoryview(data)
    if bytes(view[_LENGTH : _CHECKSUM.start]) != _START or len(view) < _CHECKSUM.stop:
        raise CheckpointDamaged(f"not a checkpoint: {len(view)} bytes without the start of one")
    if (found := _checksum([view])) != (expected := bytes(view[_CHECKSUM])):
        raise CheckpointDamaged(
            f"cut off or changed: the checksum of its {len(view)} bytes is {found.decode()},"
            f" not {expected.decode(errors='backslashreplace')} as it says"
        )
    # From here on the bytes are those that were written, though perhaps by another program.
    try:
        end = _LENGTH + int.from_bytes(view[:_LENGTH], "little")
        header = json.loads(bytes(view[_LENGTH:end]))
        metadata = header.pop(_METADATA)
        _check_metadata(metadata, owner)
        return Checkpoint(dict(_tensors(header, view[end:])), json.loads(metadata["facts"]))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"its header cannot be read: {type(error).__name__}: {error}") from error


def _check(name: str, tensor: Tensor) -> None:
    if name == _METADATA:
        raise ValueError(f"a tensor cannot be named {name}")
    flat = tensor.dim() == 1 and tensor.is_contiguous() and tensor.device.type == "cpu"
    if not flat or tensor.dtype not in _TYPES:
        raise ValueError(
            f"tensor {name}: {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device};"
            f" expected a flat, contiguous one on the CPU of {' or '.join(map(str, _TYPES))}"
        )


def _facts_text(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, allow_nan=False)
    if json.loads(text) != facts:
        raise ValueError(f"facts that JSON would change, such as keys that are no strings: {text}")
    return text


def _header(tensors: Mapping[str, Tensor], facts: str, owner: Owner) -> bytes:
    """The header with its length, and eight zeros for the checksum."""
    metadata = {"crc32": "0" * 8, "format": FORMAT, "facts": facts}
    header: dict[str, Any] = {_METADATA: metadata | {"study": owner.study, "experiment": owner.experiment}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": [len(tensor)],
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH, "little") + text


def _memory_of(tensor: Tensor) -> memoryview:
    # Through uint8, since a memoryview of no elements cannot be cast.
    return tensor.detach().numpy().view(np.uint8).data


def _checksum(pieces: Sequence[memoryview]) -> bytes:
    """Of a whole file but for the checksum itself, which is in the first piece."""
    first, *others = pieces
    value = zlib.crc32(first[_CHECKSUM.stop :], zlib.crc32(first[: _CHECKSUM.start]))
    for piece in others:
        value = zlib.crc32(piece, value)
    return f"{value:08x}".encode()


def _check_metadata(metadata: Mapping[str, str], owner: Owner) -> None:
    if metadata["format"] != FORMAT:
        raise CheckpointDamaged(f"format {metadata['format']}; this program reads {FORMAT}")
    found = Owner(metadata["study"], metadata["experiment"])
    if found != owner:
        raise CheckpointDamaged(
            f"of study {found.study}, experiment {found.experiment};"
            f" expected {owner.study}, {owner.experiment}"
        )


def _tensors(header: Mapping[str, Any], data: memoryview) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by name. Raises ValueError unless they are all of `data`, one after the other."""
    position = 0
    for name, told in header.items():
        dtype, (length,), (start, end) = _NUMPY[told["dtype"]], told["shape"], told["data_offsets"]
        if start != position or end != start + length * dtype.itemsize:
            raise ValueError(
                f"tensor {name} of {length} elements at {start} to {end}; expected at {position}"
            )
        yield name, torch.from_numpy(np.frombuffer(data[start:end], dtype))
        position = end
    if position != len(data):
        raise ValueError(f"{len(data)} bytes of tensors; expected {position}")
