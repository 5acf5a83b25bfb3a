"""`nn.MultiheadAttention` with a linear layer each for queries, keys and values, and two products."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.modules.products import MatMul, linear_of


class SplitAttention(nn.Module):
    """Computes what a `nn.MultiheadAttention` computes, with the same arguments, masks, layouts and results.

    `q_proj`, `k_proj`, `v_proj` and `out_proj` are linear layers of their own, `scores` and `context` the products of
    queries with keys and of probabilities with values.

    Args:
        packed: what it takes the place of; its weights are copied, apart from `out_proj`'s, which it shares.
    """

    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False
    """What torch's encoder layers look at before they take their fused path, which this module must not be on."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = packed.embed_dim, packed.num_heads, packed.head_dim
        self.batch_first, self.dropout = packed.batch_first, packed.dropout
        self.add_zero_attn = packed.add_zero_attn
        self.bias_k, self.bias_v = packed.bias_k, packed.bias_v
        weights: Iterable[Tensor] = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        if packed.in_proj_weight is not None:
            weights = packed.in_proj_weight.chunk(3)
        biases = [None] * 3 if packed.in_proj_bias is None else list(map(_own, packed.in_proj_bias.chunk(3)))
        self.q_proj, self.k_proj, self.v_proj = map(linear_of, map(_own, weights), biases)
        self.scores, self.context = MatMul(), MatMul()
        self.out_proj = packed.out_proj
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        if is_causal and attn_mask is None:
            raise RuntimeError("need attn_mask if specifying the is_causal hint")
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        k, v, mask = self._longer(k, v, mask)
        scores = self.scores(q * (1.0 / math.sqrt(self.head_dim)), k.transpose(-2, -1))
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        if self.dropout and self.training:
            weights = F.dropout(weights, self.dropout)
        result = self.out_proj(self._joined(self.context(weights, v), batched))
        if not need_weights:
            return result, None
        shown = weights.mean(1) if average_attn_weights else weights
        return result, shown if batched else shown.squeeze(0)

    def _heads(self, x: Tensor) -> Tensor:
        """To `[batch, heads, length, channels of a head]`."""
        heads = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        if x.dim() == 2:
            return heads.transpose(0, 1).unsqueeze(0)
        return heads.transpose(1, 2) if self.batch_first else heads.permute(1, 2, 0, 3)

    def _joined(self, x: Tensor, batched: bool) -> Tensor:
        """From heads to the layout of the inputs."""
        if not batched:
            return x.squeeze(0).transpose(0, 1).flatten(1)
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        return x.permute(*order).flatten(2)

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores: `[batch or 1, heads or 1, queries or 1, keys]`."""
        total: Tensor | None = None
        if attention is not None:
            added = _additive(attention, q.dtype)
            total = added.reshape(-1, self.num_heads, *added.shape[1:]) if added.dim() == 3 else added
        if padding is not None:
            added = _additive(padding, q.dtype)
            rows = added[:, None, None, :] if added.dim() == 2 else added
            total = rows if total is None else total + rows
        return total

    def _longer(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with the learned and the zero ones behind them, which no mask hides."""
        for more_k, more_v in self._more(k):
            k, v = torch.cat((k, more_k), 2), torch.cat((v, more_v), 2)
            mask = None if mask is None else F.pad(mask, (0, 1))
        return k, v, mask

    def _more(self, k: Tensor) -> list[tuple[Tensor, Tensor]]:
        found = []
        if self.bias_k is not None and self.bias_v is not None:
            learned = (bias.view(1, self.num_heads, 1, self.head_dim) for bias in (self.bias_k, self.bias_v))
            key, value = (bias.expand(k.shape[0], -1, -1, -1) for bias in learned)
            found.append((key, value))
        if self.add_zero_attn:
            zero = torch.zeros_like(k[:, :, :1])
            found.append((zero, zero))
        return found


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def _own(part: Tensor) -> nn.Parameter:
    return nn.Parameter(part.detach().clone(), requires_grad=part.requires_grad)
