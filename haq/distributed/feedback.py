"""Error feedback: what was not sent is added to the next gradient (Seide et al., 2014; Karimireddy et al., 2019)."""

from __future__ import annotations

from torch import Tensor

from haq.distributed.base import Compressor, Place


class ErrorFeedback(Compressor):
    """p = g + e; sends C(p); e becomes p - C(p). What was sent and what is left always add up to all gradients.

    Args:
        inner: a biased compressor.
    """

    biased = False

    def __init__(self, inner: Compressor) -> None:
        self._inner = inner
        self.summed, self.fixed_size = inner.summed, inner.fixed_size
        self.needs_largest = inner.needs_largest
        self._residual: dict[str, Tensor] = {}

    def _corrected(self, values: Tensor, place: Place) -> Tensor:
        residual = self._residual.get(place.name)
        return values if residual is None else values + residual

    def largest(self, values: Tensor, place: Place) -> float:
        return self._inner.largest(self._corrected(values, place), place)

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        corrected = self._corrected(values, place)
        message = self._inner.encode(corrected, place, largest=largest)
        self._residual[place.name] = corrected - self._inner.decode(message, place)
        return message

    def decode(self, message: Tensor, place: Place) -> Tensor:
        return self._inner.decode(message, place)

    def residual(self, name: str) -> Tensor | None:
        """What of a parameter's gradients was not sent yet, as a row; `None` before the first step."""
        return self._residual.get(name)

    def state_dict(self) -> dict[str, Tensor]:
        own = {f"residual/{name}": value.clone() for name, value in self._residual.items()}
        return own | {f"inner/{name}": value for name, value in self._inner.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._residual = {name: value.clone() for name, value in _part(state, "residual").items()}
        self._inner.load_state_dict(_part(state, "inner"))


def _part(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {key.partition("/")[2]: value for key, value in state.items() if key.startswith(f"{kind}/")}
