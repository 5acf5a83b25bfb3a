"""Data sets as three disjoint splits: train, search, test."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FASHION_MNIST_DEFAULT_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts its files."""
FASHION_MNIST_ENV = "HAQ_FASHION_MNIST"
_FASHION_MEAN, _FASHION_STD = 0.2860, 0.3530
_SPLIT_SEED = 20_240_601


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and targets held in memory.

    Attributes:
        inputs: `[n, ...]`, what the model's `forward` takes, normalised.
        targets: `[n, ...]`, what the loss and the metric take (class indices for classification).
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"a split needs a target for each input, got {len(self.inputs)} inputs, {len(self.targets)} targets"
            )
        if len(self.inputs) == 0:
            raise ValueError("a split needs at least one sample, got none")

    def __len__(self) -> int:
        return len(self.inputs)

    def head(self, count: int) -> Split:
        """The first `count` samples (all of them when there are fewer)."""
        return Split(self.inputs[:count], self.targets[:count])

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Consecutive `(inputs, targets)` batches in order; the last may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.inputs[start : start + batch_size], self.targets[start : start + batch_size]


@dataclass(frozen=True, eq=False)
class DataSplits:
    """The three disjoint splits of one data set.

    `train` calibrates and fine-tunes, `search` scores policies, `test` is read once, at the very end.
    """

    train: Split
    search: Split
    test: Split


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
