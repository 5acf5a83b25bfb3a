"""`nn.EmbeddingBag` as a table that is looked up and a sum, mean or maximum over what was found."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bag(nn.Module):
    """Computes what an `nn.EmbeddingBag` computes; `table` is an embedding of its own.

    Args:
        packed: what it takes the place of; its weight is shared.
    """

    def __init__(self, packed: nn.EmbeddingBag) -> None:
        super().__init__()
        self.mode, self.include_last_offset = packed.mode, packed.include_last_offset
        self.padding_idx = packed.padding_idx
        self.table = nn.Embedding(1, 1)
        self.table.num_embeddings, self.table.embedding_dim = packed.weight.shape
        self.table.weight = packed.weight
        self.train(packed.training)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        rows = self.table(input)
        kept = torch.ones_like(input, dtype=torch.bool) if self.padding_idx is None else input != self.padding_idx
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.unsqueeze(-1)
        if input.dim() == 2:
            return self._reduced(rows, kept)
        assert offsets is not None, "offsets are needed where the indices have one dimension"
        starts = offsets[:-1] if self.include_last_offset else offsets
        positions = torch.arange(len(input), device=input.device)
        members = torch.bucketize(positions, starts, right=True) - 1 == torch.arange(len(starts)).to(starts)[:, None]
        return self._reduced(rows.expand(len(starts), -1, -1), members & kept)

    def _reduced(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Over dimension 1 of `[bags, entries, channels]`; an empty bag is zero."""
        some = kept.unsqueeze(-1)
        if self.mode == "max":
            most = rows.masked_fill(~some, float("-inf")).amax(1)
            return most.masked_fill(~some.any(1), 0.0)
        total = (rows * some).sum(1)
        return total if self.mode == "sum" else total / some.sum(1).clamp(min=1)
