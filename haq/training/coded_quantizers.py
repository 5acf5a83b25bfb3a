"""Trainable quantizers of formats whose weights are coded: straight through, or by the gradients of centroids."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from haq.quant.formats.base import Coder, Quantizer
from haq.quant.formats.codebook import Codebook
from haq.quant.formats.product import ProductCodebooks
from haq.training.learned_quantizers import TrainableQuantizer


class Straight(TrainableQuantizer):
    """A quantizer that has nothing to learn: scales follow the values or stay as calibrated; the gradient passes."""

    def __init__(self, calibrated: Quantizer) -> None:
        super().__init__()
        self._calibrated = calibrated

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        assert calibrated == self._calibrated

    def forward(self, x: Tensor) -> Tensor:
        return self._calibrated(x)

    def fixed(self, values: Tensor) -> Quantizer:
        return self._calibrated


class CodebookWeight(TrainableQuantizer):
    """Codes stay; the gradient of a centroid is the sum of those of its weights, whose own is 0.

    Deep Compression (Han et al., ICLR 2016, equation 3), also of sub-vectors.

    Attributes:
        centroids: shaped as the codebook stores them.
        codes: of each weight, or sub-vector.
    """

    codes: Tensor

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.zeros(shape))
        self.register_buffer("codes", torch.zeros(0, 0, dtype=torch.uint8))
        self._book: Codebook | ProductCodebooks | None = None

    def start(self, calibrated: Quantizer, values: Tensor) -> None:
        assert isinstance(calibrated, Codebook | ProductCodebooks)
        self._book = calibrated
        codes = calibrated.encode(values)["codes"]
        with torch.no_grad():
            self.centroids.copy_(calibrated.centroids)
            if codes.shape == self.codes.shape:
                self.codes.copy_(codes)
            else:
                self.codes = codes

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self._book, Coder)
        held = self._book.decode({"codes": self.codes, "centroids": self.centroids}, x.shape[1])
        return held + 0.0 * x  # a gradient of 0, so that all parameters have one

    def fixed(self, values: Tensor) -> Quantizer:
        centroids = self.centroids.detach().clone()
        if isinstance(self._book, Codebook):
            return replace(self._book, centroids=centroids.sort().values)
        assert self._book is not None
        return replace(self._book, centroids=centroids)
