"""Product quantization: sub-vectors of a row are the nearest of k, and a product is sums of table entries.

Jegou et al., "Product quantization for nearest neighbor search" (PAMI 2011); of weights: Stock et al., "And the bit
goes down" (ICLR 2020), there with one codebook for all positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Calibration, Coder, NumberFormat, Quantizer
from haq.quant.formats.blocks import along, cut
from haq.values.formats import Format

_ITERATIONS = 50
_AT_ONCE = 1 << 22
"""Distances that are held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class ProductCodebooks:
    """The nearest sub-vector of the codebook for each position; the first of equals.

    Attributes:
        bits: of a code: codebooks hold 2^bits sub-vectors.
        size: weights of a sub-vector; the last of a row may be shorter.
        centroids: `[2^bits, n]`: sub-vector j of all codebooks side by side is row j.
    """

    bits: int
    size: int
    centroids: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return along(x, -1, lambda rows: self.decode(self.encode(rows), rows.shape[1]))

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        vectors, books = (cut(part, self.size).transpose(0, 1) for part in (rows, self.centroids))
        return {"codes": nearest(vectors, books).t().to(torch.uint8).contiguous(), "centroids": self.centroids.clone()}

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        books = cut(arrays["centroids"], self.size)  # [k, positions, size]
        positions = torch.arange(books.shape[1], device=books.device)
        rows = books[arrays["codes"].long(), positions]
        return rows.reshape(rows.shape[0], -1)[:, :columns].contiguous()

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, -(-columns // self.size)), "centroids": (2**self.bits, columns)}

    @property
    def widths(self) -> Mapping[str, int]:
        return {} if self.bits == 8 else {"codes": self.bits}


def looked_up_products(inputs: Tensor, arrays: Arrays, size: int) -> Tensor:
    """`inputs @ weight.T` from tables: each input meets each sub-vector once, then every output is a sum of entries.

    Args:
        inputs: `[batch, n]`.
        arrays: a weight `[rows, n]` as `ProductCodebooks` stores it.
        size: weights of a sub-vector.

    Returns:
        `[batch, rows]`.
    """
    parts, books = cut(inputs, size), cut(arrays["centroids"].to(inputs.dtype), size)
    tables = torch.einsum("bpd,kpd->bpk", parts, books)
    codes = arrays["codes"].long().t()[None].expand(len(inputs), -1, -1)  # [batch, positions, rows]
    return tables.gather(2, codes).sum(1)


def nearest(vectors: Tensor, books: Tensor) -> Tensor:
    """The nearest of `books [positions, k, d]` for each of `vectors [positions, rows, d]`: `[positions, rows]`."""
    step = max(1, _AT_ONCE // max(1, vectors.shape[1] * books.shape[1]))
    parts = zip(torch.split(vectors, step), torch.split(books, step), strict=True)
    return torch.cat([_distances(some, those).argmin(2) for some, those in parts])


def _distances(vectors: Tensor, books: Tensor) -> Tensor:
    # Without |v|^2, which is the same for all of the book.
    return books.square().sum(2)[:, None] - 2 * vectors @ books.transpose(1, 2)


def product_codebooks(rows: Tensor, count: int, size: int) -> Tensor:
    """Centroids `[count, n]` of Lloyd's algorithm for each position of a sub-vector, from `count` spread-out rows.

    It starts from the sub-vectors at even ranks of their largest-variance coordinate; a centroid without sub-vectors
    takes the one that is worst represented. No randomness.
    """
    vectors = cut(rows, size).transpose(0, 1).contiguous()  # [positions, rows, size]
    axis = vectors.var(1, unbiased=False).argmax(1)
    order = (
        vectors.gather(2, axis[:, None, None].expand(-1, vectors.shape[1], 1)).squeeze(2).argsort(dim=1, stable=True)
    )
    ranks = ((torch.arange(count, device=rows.device) + 0.5) * vectors.shape[1] / count).long()
    books = vectors.gather(1, order[:, ranks, None].expand(-1, -1, size))
    before = None
    for _ in range(_ITERATIONS):
        codes = nearest(vectors, books)
        if before is not None and torch.equal(codes, before):
            break
        before = codes
        books = _means(vectors, books, codes)
    return books.transpose(0, 1).reshape(count, -1)[:, : rows.shape[1]].contiguous()


def _means(vectors: Tensor, books: Tensor, codes: Tensor) -> Tensor:
    sums = torch.zeros_like(books).scatter_add_(1, codes[..., None].expand_as(vectors), vectors)
    sizes = torch.zeros(books.shape[:2], device=books.device)
    sizes.scatter_add_(1, codes, torch.ones_like(codes, dtype=sizes.dtype))
    means = torch.where(sizes[..., None] > 0, sums / sizes.clamp(min=1)[..., None], books)
    held = books.gather(1, codes[..., None].expand_as(vectors))
    worst = (vectors - held).square().sum(2).argsort(dim=1, descending=True, stable=True)
    spare = (sizes == 0).cumsum(1) - 1  # the first empty centroid takes the worst sub-vector, and so on
    taken = worst.gather(1, spare.clamp(min=0))
    replacement = vectors.gather(1, taken[..., None].expand_as(books))
    return torch.where(sizes[..., None] > 0, means, replacement)


class ProductFormat(NumberFormat):
    """Weights only; a codebook for each position of a sub-vector, which all output channels share."""

    family = "product quantization"

    def weight_quantizer(self, rows: Tensor, fmt: Format, how: Calibration) -> Quantizer:
        bits, size = fmt.numbers
        return ProductCodebooks(bits, size, product_codebooks(rows, 2**bits, size))

    def coder(self, fmt: Format) -> Coder:
        bits, size = fmt.numbers
        return ProductCodebooks(bits, size, torch.zeros(2**bits, 0))
