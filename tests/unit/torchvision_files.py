"""Tiny data sets in the formats of torchvision's: pickled batches (CIFAR) and IDX files (MNIST)."""

import gzip
import hashlib
import pickle
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.catalogue import Dataset
from runtime.vision import import_torchvision

CLASSES = {
    Dataset.CIFAR10: "CIFAR10",
    Dataset.CIFAR100: "CIFAR100",
    Dataset.MNIST: "MNIST",
    Dataset.FASHION_MNIST: "FashionMNIST",
}
TRAIN, TEST = [7, 0, 1], [9]
"""Labels. An image's pixels all have the value of its label."""


def write(dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files of a data set below `folder`; CIFAR's get the MD5 sums that torchvision then expects."""
    source = getattr(import_torchvision().datasets, CLASSES[dataset])
    if dataset in {Dataset.CIFAR10, Dataset.CIFAR100}:
        _write_cifar(source, folder / source.base_folder, monkeypatch)
    else:
        write_idx(folder / CLASSES[dataset] / "raw")


def write_archives(dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the archives of a data set into `folder`, with MD5 sums that torchvision then expects; their names."""
    unpacked = folder / "unpacked"
    write(dataset, unpacked, monkeypatch)
    source = getattr(import_torchvision().datasets, CLASSES[dataset])
    if dataset in {Dataset.CIFAR10, Dataset.CIFAR100}:
        archive = folder / source.filename
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(unpacked / source.base_folder, source.base_folder)
        monkeypatch.setattr(source, "tgz_md5", _md5(archive.read_bytes()))
        return [archive.name]
    resources = []
    for file in sorted((unpacked / CLASSES[dataset] / "raw").iterdir()):
        archive = folder / f"{file.name}.gz"
        archive.write_bytes(gzip.compress(file.read_bytes()))
        resources.append((archive.name, _md5(archive.read_bytes())))
    monkeypatch.setattr(source, "resources", resources)
    return [name for name, _ in resources]


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _write_cifar(source: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    key = "fine_labels" if source.__name__ == "CIFAR100" else "labels"

    def store(name: str, content: Mapping[str, object]) -> tuple[str, str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return name, _md5(data)

    def batch(labels: Sequence[int]) -> dict[str, object]:
        pixels = [np.full(3072, label, dtype=np.uint8) for label in labels]
        return {"data": np.stack(pixels), key: list(labels)}

    # Channels come one after the other: all of an image's red, then green, then blue.
    first = batch(TRAIN[:2])
    first["data"][0] = np.repeat(np.array([7, 17, 27], dtype=np.uint8), 1024)  # type: ignore[index]  # an array
    monkeypatch.setattr(source, "train_list", [store("one", first), store("two", batch(TRAIN[2:]))])
    monkeypatch.setattr(source, "test_list", [store("three", batch(TEST))])
    name, digest = store("names", {"names": ["apple", "bear"]})
    monkeypatch.setattr(source, "meta", {"filename": name, "key": "names", "md5": digest})


def write_idx(folder: Path, *, train: Sequence[int] = TRAIN, size: int = 28) -> None:
    """Write the four files of MNIST or FashionMNIST into `folder`. Source: yann.lecun.com/exdb/mnist."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, labels in (("train", train), ("t10k", TEST)):
        count = len(labels)
        pixels = b"".join(bytes([label]) * size * size for label in labels)
        header = struct.pack(">4I", 0x803, count, size, size)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels)
        header = struct.pack(">2I", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + bytes(labels))
