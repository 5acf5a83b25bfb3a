"""Data sets as three disjoint splits: train, search, test."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

FASHION_MNIST_DEFAULT_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts its files."""
FASHION_MNIST_ENV = "HAQ_FASHION_MNIST"
_FASHION_MEAN, _FASHION_STD = 0.2860, 0.3530
_SPLIT_SEED = 20_240_601


Batch = Any
"""A tensor, or a tuple, list or dict of tensors, whose first dimension counts samples."""


def _tensors(value: Batch) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for entry in value.values() for tensor in _tensors(entry)]
    if isinstance(value, tuple | list):
        return [tensor for entry in value for tensor in _tensors(entry)]
    raise ValueError(f"a split holds tensors, or tuples or dicts of tensors, got {type(value).__name__}")


def _rows(value: Batch, rows: slice) -> Batch:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Mapping):
        return {key: _rows(entry, rows) for key, entry in value.items()}
    return tuple(_rows(entry, rows) for entry in value)


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and targets held in memory.

    Attributes:
        inputs: `[n, ...]`, what the model's `forward` takes; a tuple for several arguments, a dict for keywords.
        targets: `[n, ...]`, what the loss and the metric take (class indices for classification).
    """

    inputs: Batch
    targets: Batch

    def __post_init__(self) -> None:
        tensors = (*_tensors(self.inputs), *_tensors(self.targets))
        if any(tensor.dim() == 0 for tensor in tensors):
            raise ValueError("a split holds tensors whose first dimension counts samples, got one without dimensions")
        counts = {len(tensor) for tensor in tensors}
        if len(counts) != 1:
            raise ValueError(f"inputs and targets of a split need one count of samples, got {sorted(counts)}")
        if counts == {0}:
            raise ValueError("a split needs at least one sample, got none")

    def __len__(self) -> int:
        return len(_tensors(self.inputs)[0])

    def head(self, count: int) -> Split:
        """The first `count` samples (all of them when there are fewer)."""
        return Split(_rows(self.inputs, slice(count)), _rows(self.targets, slice(count)))

    def batches(self, batch_size: int) -> Iterator[tuple[Batch, Batch]]:
        """Consecutive `(inputs, targets)` batches in order; the last may be smaller."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield _rows(self.inputs, rows), _rows(self.targets, rows)

    def tensors(self) -> list[Tensor]:
        """All tensors, inputs first."""
        return [*_tensors(self.inputs), *_tensors(self.targets)]


@dataclass(frozen=True, eq=False)
class DataSplits:
    """The three disjoint splits of one data set.

    `train` calibrates and fine-tunes, `search` scores policies, `test` scores the answer at the very end.
    """

    train: Split
    search: Split
    test: Split

    @classmethod
    def of(cls, value: Any) -> DataSplits:
        """From what a user's data function may return.

        Args:
            value: `DataSplits`, or `train`, `search`, `test` as a tuple or dict; each a `Split`, an
                `(inputs, targets)` pair, or a torch map-style `Dataset` of such pairs.

        Raises:
            ValueError: none of these; says what it got.
        """
        if isinstance(value, DataSplits):
            return value
        names = ("train", "search", "test")
        if isinstance(value, Mapping) and set(value) == set(names):
            value = tuple(value[name] for name in names)
        if not isinstance(value, tuple | list) or len(value) != len(names):
            raise ValueError(
                f"a data function returns haq.DataSplits or (train, search, test), got {type(value).__name__}"
            )
        return cls(*map(_as_split, value))


def _as_split(value: Any) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, Dataset):
        count = len(value)  # type: ignore[arg-type]
        inputs, targets = default_collate([value[index] for index in range(count)])
        return Split(inputs, targets)
    if isinstance(value, tuple | list) and len(value) == 2:
        return Split(value[0], value[1])
    raise ValueError(f"a split is haq.Split, (inputs, targets) or a torch Dataset, got {type(value).__name__}")


def load_digits() -> DataSplits:
    """Scikit-learn's 8 x 8 handwritten digits: 1,797 images as `[n, 1, 8, 8]` in [0, 1]; 60 / 20 / 20 %."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16.0).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    images, labels = images[order], labels[order]
    train_end, search_end = int(0.6 * len(images)), int(0.8 * len(images))
    return DataSplits(
        Split(images[:train_end], labels[:train_end]),
        Split(images[train_end:search_end], labels[train_end:search_end]),
        Split(images[search_end:], labels[search_end:]),
    )


def _read_idx(path: Path) -> np.ndarray:
    with gzip.open(path, "rb") as stream:
        raw = stream.read()
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
    if data.size != int(np.prod(shape)):
        raise ValueError(
            f"{path}: the idx header promises {int(np.prod(shape))} bytes, the file holds {data.size}; get a whole copy"
        )
    return data.reshape(shape)


def load_fashion_mnist(directory: str | Path | None = None) -> DataSplits:
    """Fashion-MNIST as `[n, 1, 28, 28]`, normalised: 55,000 train, 5,000 search, 10,000 test.

    Args:
        directory: the folder of the four `*-ubyte.gz` files. Default: the environment variable
            `HAQ_FASHION_MNIST`, else where Debian's package `dataset-fashion-mnist` puts them.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    folder = Path(directory or os.environ.get(FASHION_MNIST_ENV) or FASHION_MNIST_DEFAULT_DIR)
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        raise FileNotFoundError(
            f"no Fashion-MNIST in {folder}: install Debian's package dataset-fashion-mnist, or put the four "
            f"*-ubyte.gz files in a folder and name it in data.directory or in ${FASHION_MNIST_ENV}"
        )

    def load(stem: str) -> tuple[Tensor, Tensor]:
        images = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz").astype(np.float32) / 255.0
        labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz").astype(np.int64)
        return torch.from_numpy((images - _FASHION_MEAN) / _FASHION_STD).unsqueeze(1), torch.from_numpy(labels)

    images, labels = load("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    train, search = order[:-5000], order[-5000:]
    return DataSplits(Split(images[train], labels[train]), Split(images[search], labels[search]), Split(*load("t10k")))
