"""A folder of images as data: one folder per class, as ImageNet comes, or just images, without labels."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from haq.edges.documents import read_bytes
from haq.values.errors import InputError
from haq.zoo.data import DataSplits, Split

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
UNLABELLED = -100
"""The target of an image without a label: what torch's cross entropy passes over."""
_SPLIT_SEED = 20_240_601
_LEAST_AREA, _LEAST_ASPECT = 0.2, 3 / 4


@dataclass(frozen=True)
class _File:
    path: Path
    label: int


def load_images(
    folder: str,
    *,
    size: int = 224,
    resize: int | None = None,
    train: int = 256,
    search: int = 512,
    test: int = 512,
    crops: int = 0,
    classes: int | None = None,
    mean: Sequence[float] = (127.0, 127.0, 127.0),
    std: Sequence[float] = (128.0, 128.0, 128.0),
) -> DataSplits:
    """Images as `[n, 3, size, size]`, in an order that does not depend on the machine.

    Folders in `folder` are classes, numbered by name, as in `torchvision.datasets.ImageFolder`; images that lie in
    `folder` itself have no labels. Splits are drawn image by image: no image is in two of them.

    Args:
        folder: where the images are.
        size: side of what the model sees.
        resize: the shorter side, of which the centre is cut out; default: `size` / 0.875.
        train: images of the split that calibrates; where there are fewer in all, each split gets its share.
        search: images of the split that policies are scored on.
        test: images of the split that the answer is scored on.
        crops: in place of the centre, so many random cuts of each image, half of them mirrored; 0: the centre.
        classes: expected number of class folders; default: not checked.
        mean: taken off each channel, on the scale of 0 to 255; the default is EfficientNet-Lite's.
        std: divides each channel.

    Raises:
        InputError: no such folder, too few images, a file that is none, or Pillow is missing.
    """
    counts = {"train": train, "search": search, "test": test}
    for name, count in {**counts, "size": size}.items():
        if count < 1:
            raise InputError(f"data.options.{name} = {count}: give a number of at least 1")
    files = _files(Path(folder).expanduser(), classes)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    limits = np.cumsum([0, *_shares(list(counts.values()), len(files))])
    scale = _Scale(size, resize or round(size / 0.875), crops, mean, std)
    parts = (order[low:high] for low, high in itertools.pairwise(limits))
    return DataSplits(*(scale.split([files[index] for index in part]) for part in parts))


def _files(folder: Path, classes: int | None) -> list[_File]:
    if not folder.is_dir():
        raise InputError(f"data.options.folder = {str(folder)!r}: no such folder")
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if classes is not None and labels and len(labels) != classes:
        raise InputError(f"{folder}: has {len(labels)} class folders, the model {classes} classes; give all of them")
    groups = [(folder / name, index) for index, name in enumerate(labels)] or [(folder, UNLABELLED)]
    found = [
        _File(path, label)
        for place, label in groups
        for path in sorted(place.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if len(found) < 3:
        raise InputError(f"{folder}: has {len(found)} images ({', '.join(SUFFIXES)}); three splits need 3 or more")
    return found


def _shares(wanted: list[int], available: int) -> list[int]:
    """How many images each split gets: what it asks for, or its part of too few, one at least."""
    if sum(wanted) <= available:
        return wanted
    counts = [max(1, available * count // sum(wanted)) for count in wanted]
    largest = counts.index(max(counts))
    counts[largest] += available - sum(counts)
    return counts


@dataclass(frozen=True)
class _Scale:
    size: int
    resize: int
    crops: int
    mean: Sequence[float]
    std: Sequence[float]

    def split(self, files: Sequence[_File]) -> Split:
        inputs, targets = [], []
        for file in files:
            views = self._views(file.path)
            inputs += views
            targets += [file.label] * len(views)
        return Split(torch.stack(inputs), torch.tensor(targets))

    def _views(self, path: Path) -> list[Tensor]:
        image = _open(path)
        if not self.crops:
            return [self._tensor(self._centre(image))]
        rng = np.random.default_rng([*path.name.encode()])
        return [self._tensor(self._crop(image, rng)) for _ in range(self.crops)]

    def _centre(self, image: Image.Image) -> Image.Image:
        side = min(image.size) * self.size / self.resize
        return self._cut(image, (image.width - side) / 2, (image.height - side) / 2, side, side)

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A cut of 20 to 100 % of the area, sides within 3 : 4, as networks are trained on (Szegedy et al. 2015)."""
        from PIL import ImageOps

        area = image.width * image.height * rng.uniform(_LEAST_AREA, 1.0)
        aspect = np.exp(rng.uniform(np.log(_LEAST_ASPECT), -np.log(_LEAST_ASPECT)))
        width = min(float(np.sqrt(area * aspect)), image.width)
        height = min(float(np.sqrt(area / aspect)), image.height)
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        cut = self._cut(image, left, top, width, height)
        return ImageOps.mirror(cut) if rng.random() < 0.5 else cut

    def _cut(self, image: Image.Image, left: float, top: float, width: float, height: float) -> Image.Image:
        from PIL import Image as module

        box = (left, top, left + width, top + height)
        return image.resize((self.size, self.size), module.Resampling.BICUBIC, box=box)

    def _tensor(self, image: Image.Image) -> Tensor:
        values = (np.asarray(image, np.float32) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _open(path: Path) -> Image.Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("reading images needs the package pillow; install it: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            # Pillow warns of an image that is said to be huge and gives up at twice that size; both are too much.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(read_bytes(path))) as image:
                return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # decoders fail in many ways
        raise InputError(f"{path}: not an image that can be read: {error}; repair or remove it") from error
