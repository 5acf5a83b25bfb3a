"""`nn.LSTM`, `nn.GRU` and `nn.RNN` with two linear layers for each layer and direction, unrolled over time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.modules.products import linear_of

State = tuple[Tensor, ...]
"""Hidden state `[batch, outputs]`, and of an LSTM the cell state `[batch, hidden]`."""


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    return ((1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * state[0],)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.relu(x + h),)


_CELLS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _tanh,
    "RNN_RELU": _relu,
}


class Direction(nn.Module):
    """One layer in one direction: `ih` multiplies with the inputs, `hh` with the hidden state, `hr` projects it."""

    def __init__(self, packed: nn.RNNBase, suffix: str) -> None:
        super().__init__()
        self.mode = packed.mode
        self.outputs = packed.proj_size or packed.hidden_size
        self.hidden = packed.hidden_size
        self.ih, self.hh = (_linear(packed, f"{kind}_l{suffix}") for kind in ("ih", "hh"))
        if packed.proj_size:
            self.hr = _linear(packed, f"hr_l{suffix}")

    def forward(self, x: Tensor, state: State | None, *, reverse: bool) -> tuple[Tensor, State]:
        """All hidden states `[length, batch, outputs]` of inputs `[length, batch, channels]`, and the last state."""
        gates = self.ih(x)
        if state is None:
            nothing = gates[0, :, :1] * 0  # of the inputs' batch, in a graph for any batch, too
            sizes = (self.outputs, self.hidden) if self.mode == "LSTM" else (self.outputs,)
            state = tuple(nothing.expand(-1, size) for size in sizes)
        steps = list(range(x.shape[0]))
        written = []
        for step in reversed(steps) if reverse else steps:
            hidden, *more = _CELLS[self.mode](gates[step], self.hh(state[0]), state)
            state = (self.hr(hidden) if hasattr(self, "hr") else hidden, *more)
            written.append(state[0])
        return torch.stack(written[::-1] if reverse else written), state


class Unrolled(nn.Module):
    """Computes what a recurrent module of torch computes, with the same arguments, layouts and results.

    The loop over time is unrolled for the length of the inputs, so that an exported graph is for that length.

    Args:
        packed: what it takes the place of; its weights are shared.
    """

    def __init__(self, packed: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.num_layers, self.bidirectional = packed.mode, packed.num_layers, packed.bidirectional
        self.batch_first, self.dropout = packed.batch_first, packed.dropout
        self.input_size, self.hidden_size, self.proj_size = packed.input_size, packed.hidden_size, packed.proj_size
        for name, suffix, _ in self._directions():
            self.add_module(name, Direction(packed, suffix))
        self.train(packed.training)

    def _directions(self) -> Iterable[tuple[str, str, bool]]:
        for layer in range(self.num_layers):
            yield f"l{layer}", str(layer), False
            if self.bidirectional:
                yield f"l{layer}_reverse", f"{layer}_reverse", True

    def flatten_parameters(self) -> None:
        """Nothing: it is for kernels that read packed weights."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        if not isinstance(input, Tensor):
            raise TypeError(f"a recurrent layer reads a {type(input).__name__}; give it a padded tensor")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        given = self._given(hx, batched)
        finals, sides = [], []
        for index, (name, _, reverse) in enumerate(self._directions()):
            state = None if given is None else tuple(part[index] for part in given)
            written, final = self.get_submodule(name)(x, state, reverse=reverse)
            finals.append(final)
            sides.append(written)
            if reverse or not self.bidirectional:
                x, sides = torch.cat(sides, -1) if len(sides) > 1 else written, []
                if self.training and self.dropout and index + 1 < len(list(self._directions())):
                    x = F.dropout(x, self.dropout)
        states = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        x = x.transpose(0, 1) if batched and self.batch_first else x
        if not batched:
            x, states = x.squeeze(1), tuple(part.squeeze(1) for part in states)
        return x, states if self.mode == "LSTM" else states[0]

    def _given(self, hx: Any, batched: bool) -> State | None:
        if hx is None:
            return None
        parts: State = tuple(hx) if self.mode == "LSTM" else (hx,)
        return parts if batched else tuple(part.unsqueeze(1) for part in parts)


def _linear(packed: nn.RNNBase, name: str) -> nn.Linear:
    weight, bias = getattr(packed, f"weight_{name}"), getattr(packed, f"bias_{name}", None)
    return linear_of(weight, bias)


class Cell(nn.Module):
    """Computes what an `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` computes, with its weights in `ih` and `hh`."""

    def __init__(self, packed: nn.RNNCellBase) -> None:
        super().__init__()
        name = type(packed).__name__.removesuffix("Cell")
        self.mode = f"RNN_{str(packed.nonlinearity).upper()}" if isinstance(packed, nn.RNNCell) else name
        self.input_size, self.hidden_size = packed.input_size, packed.hidden_size
        self.ih, self.hh = (
            linear_of(getattr(packed, f"weight_{kind}"), getattr(packed, f"bias_{kind}", None)) for kind in ("ih", "hh")
        )
        self.train(packed.training)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        gates = self.ih(input)
        if hx is None:
            nothing = (gates[..., :1] * 0).expand(*gates.shape[:-1], self.hidden_size)
            hx = (nothing, nothing) if self.mode == "LSTM" else nothing
        state: State = tuple(hx) if self.mode == "LSTM" else (hx,)
        new = _CELLS[self.mode](gates, self.hh(state[0]), state)
        return new if self.mode == "LSTM" else new[0]
