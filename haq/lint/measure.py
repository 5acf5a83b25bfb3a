"""What a finding costs, measured: the loss with one thing quantized, or the time that the device's cost model gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from haq.quant import QuantizedModel
from haq.quant.nested import Loss, map_tensors
from haq.values.formats import Format, Precision
from haq.values.policy import Policy

_FLOAT = Format.parse("fp32")


class LossMeter:
    """Increases of the loss over the float model's, on some training samples.

    Args:
        model: the quantized model; left float.
        batches: `(inputs, targets)`, inputs on the model's device.
        loss: of outputs and targets.
        low: layer -> the precision at which findings are measured.
    """

    def __init__(
        self, model: QuantizedModel, batches: Iterable[tuple[Any, Any]], *, loss: Loss, low: Mapping[str, Precision]
    ) -> None:
        self._model, self._batches, self._loss = model, list(batches), loss
        self.low = dict(low)
        self._known: dict[tuple[str, str], float] = {}
        model.apply(None)
        self._float = self._mean_loss()

    @property
    def total(self) -> float:
        """Of the whole network at its low precisions."""
        if ("", "all") not in self._known:
            self._model.apply(Policy(self.low))
            self._known["", "all"] = self._mean_loss() - self._float
            self._model.apply(None)
        return self._known["", "all"]

    def share(self, increase: float) -> float:
        """Part of the whole network's increase, between 0 and 1."""
        return min(max(increase, 0.0) / self.total, 1.0) if self.total > 0 else 0.0

    def of_input(self, layer: str) -> float:
        """With only what `layer` reads in its low format."""
        return self._of(layer, "input", Precision(_FLOAT, self.low[layer].activation))

    def of_weight(self, layer: str) -> float:
        """With only the weights of `layer` in their low format."""
        return self._of(layer, "weight", Precision(self.low[layer].weight, _FLOAT))

    def of_layer(self, layer: str) -> float:
        """With both."""
        return self._of(layer, "both", self.low[layer])

    def of_softmax(self, levels: int) -> float:
        """With every softmax rounded to `levels` equal steps."""
        with _RoundedSoftmax(levels):
            return self._mean_loss() - self._float

    def sqnr_db(self, layer: str, fmt: Format, values: Tensor) -> float:
        """Signal to quantization noise of `values` that `layer` reads, in dB, in the range calibrated for `fmt`."""
        noise = float((self._model.activation_quantizer(layer, fmt)(values) - values).square().sum())
        signal = float(values.square().sum())
        return 10.0 * float(torch.log10(torch.tensor(signal / noise))) if noise > 0 and signal > 0 else float("inf")

    def _of(self, layer: str, part: str, precision: Precision) -> float:
        if (layer, part) not in self._known:
            self._model.set_precision(layer, precision)
            self._known[layer, part] = self._mean_loss() - self._float
            self._model.set_precision(layer, None)
        return self._known[layer, part]

    def _mean_loss(self) -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in self._batches:
                outputs = map_tensors(Tensor.cpu, self._model(inputs))
                size = len(next(iter(_leaves(targets))))
                total, count = total + size * float(self._loss(outputs, targets)), count + size
        return total / count


class _RoundedSoftmax(TorchFunctionMode):
    def __init__(self, levels: int) -> None:
        super().__init__()
        self._levels = levels

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "softmax":
            with torch._C.DisableTorchFunction():
                return (result * self._levels).round() / self._levels
        return result


def _leaves(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _leaves(entry)
    else:
        for entry in value:
            yield from _leaves(entry)
