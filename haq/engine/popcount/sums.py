"""Sums of products of few-bit integers: weights packed once, activations on the way, counted by `kernels.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq.engine.popcount.compiled import load, paths
from haq.values.errors import InputError

_FORMS = {"binary": 0, "ternary": 1, "serial": 2}
Pair = Sequence[int]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How values become bit planes.

    Attributes:
        form: `binary` ({-1, 1} on both sides), `ternary` ({-1, 0, 1} on both), or `serial` (two's complement).
        weight_bits: planes of a weight, signed; read by `serial` alone.
        activation_bits: planes of an activation; read by `serial` alone.
        signed: whether activations are signed; read by `serial` alone.
    """

    form: str
    weight_bits: int = 2
    activation_bits: int = 2
    signed: bool = False

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise InputError(f"form {self.form!r}: known are {', '.join(_FORMS)}")
        if self.form == "serial" and not (2 <= self.weight_bits <= 7 and 1 <= self.activation_bits <= 7):
            raise InputError("serial kernels take weights of 2 to 7 bits and activations of 1 to 7 bits")

    def planes(self, weight: bool) -> int:
        """Bit planes of a weight or of an activation."""
        if self.form != "serial":
            return 1 + (self.form == "ternary")
        return self.weight_bits if weight else self.activation_bits

    def check(self, values: NDArray[np.int8], weight: bool) -> None:
        """Raises InputError where a value has no code in this scheme."""
        if self.form == "serial":
            bits = self.planes(weight)
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if weight or self.signed else (0, (1 << bits) - 1)
        else:
            low, high = -1, 1
        out = bool(values.size) and (values.min() < low or values.max() > high)
        if out or (self.form == "binary" and not values.all()):
            raise InputError(f"{self.form} {'weights' if weight else 'activations'}: a value outside the format")


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class PackedLayer:
    """A convolution (one group) or linear layer with packed weights.

    Args:
        weight: int8 codes without zero point, `[outputs, channels, rows, columns]` or `[outputs, inputs]`.
        scheme: the formats of both sides.
        path: `portable`, `popcnt` or `avx2`; by default the last that the processor has.

    Raises:
        InputError: weights outside the format, no compiler, or a path that the processor lacks.
    """

    def __init__(self, weight: NDArray[np.int8], scheme: Scheme, *, path: str | None = None) -> None:
        known = paths()
        if path is not None and path not in known:
            raise InputError(f"path {path!r}: this processor runs {', '.join(known)}")
        self.path = path or known[-1]
        self._library, self._scheme = load(self.path), scheme
        codes = np.ascontiguousarray(weight.reshape(*weight.shape, *[1] * (4 - weight.ndim)), dtype=np.int8)
        scheme.check(codes, weight=True)
        self.outputs, self.channels, *self.kernel = codes.shape
        padded = np.zeros((-(-self.outputs // 4) * 4, *codes.shape[1:]), dtype=np.int8)
        padded[: self.outputs] = codes
        self._packed = self._pack(padded, weight=True)
        self._tap_sums = np.ascontiguousarray(codes.sum(axis=1, dtype=np.int32).reshape(self.outputs, -1))

    def _pack(self, values: NDArray[np.int8], weight: bool) -> NDArray[np.uint64]:
        count, channels, pixels = values.shape[0], values.shape[1], values.shape[2] * values.shape[3]
        planes, form = self._scheme.planes(weight), _FORMS[self._scheme.form]
        packed = np.zeros((count, planes, pixels, -(-channels // 64)), dtype=np.uint64)
        sizes = (ctypes.c_int64(size) for size in (count, channels, pixels))
        self._library.haq_pack(_pointer(values), *sizes, form, planes, _pointer(packed))
        return packed

    def conv(
        self, x: NDArray[np.int8], *, stride: Pair = (1, 1), padding: Pair = (0, 0, 0, 0), dilation: Pair = (1, 1)
    ) -> NDArray[np.int32]:
        """Sums of a convolution, `[n, outputs, height, width]` (a view of channels-last memory).

        Args:
            x: codes without zero point, `[n, channels, height, width]`; read in place where contiguous.
            stride: down and across.
            padding: top, left, bottom, right; a position in the padding adds 0 in every scheme.
            dilation: down and across.

        Raises:
            InputError: another number of channels, a value outside the format, or a kernel larger than the input.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(f"input of shape {list(x.shape)}: expected [n, {self.channels}, height, width]")
        x = np.ascontiguousarray(x, dtype=np.int8)
        self._scheme.check(x, weight=False)
        top, left, bottom, right = padding
        spans = [d * (size - 1) + 1 for d, size in zip(dilation, self.kernel, strict=True)]
        height = (x.shape[2] + top + bottom - spans[0]) // stride[0] + 1
        width = (x.shape[3] + left + right - spans[1]) // stride[1] + 1
        if height < 1 or width < 1:
            raise InputError(f"input of shape {list(x.shape)} is smaller than the kernel")
        packed, scheme = self._pack(x, weight=False), self._scheme
        sizes = [len(x), packed.shape[3], self.channels, *x.shape[2:], self.outputs, height, width, *self.kernel]
        size = np.array([*sizes, *stride, top, left, *dilation], dtype=np.int64)
        row = np.empty(packed.shape[1] * self._tap_sums.shape[1] * packed.shape[3], dtype=np.uint64)
        out = np.empty((len(x), height, width, self.outputs), dtype=np.int32)
        form = (_FORMS[scheme.form], scheme.planes(False), scheme.planes(True), int(scheme.signed))
        arrays = (_pointer(array) for array in (packed, self._packed, self._tap_sums, size))
        self._library.haq_conv(*arrays, *form, _pointer(row), _pointer(out))
        return out.transpose(0, 3, 1, 2)

    def linear(self, x: NDArray[np.int8]) -> NDArray[np.int32]:
        """Sums of a linear layer: `[n, inputs]` to `[n, outputs]`; raises as `conv` does."""
        return self.conv(x[:, :, None, None])[:, :, 0, 0]
