"""From values seen to a quantizer, in any format."""

from __future__ import annotations

from torch import Tensor

from haq.quant.formats.all import number_format
from haq.quant.formats.base import Calibration, Quantizer
from haq.quant.formats.half import float_quantizer
from haq.quant.histogram import Histogram
from haq.values.formats import Format


def calibrate_weight(
    rows: Tensor, fmt: Format, *, scheme: str, method: str, percentile: float, rounding: str = "nearest", seed: int = 0
) -> Quantizer:
    """The quantizer of a weight matrix.

    Args:
        rows: `[rows, n]`.
        fmt: any format; those that have their own rule (all but integers) leave the rest alone.
        scheme: `symmetric` or `affine`.
        method: `minmax`, `percentile`, `mse`, `balanced`, `entropy` or `octav`.
        percentile: of each row's values, for the method of that name.
        rounding: of integers: `nearest` (even), `floor`, `ceil` or `stochastic`.
        seed: of stochastic rounding.
    """
    how = Calibration(scheme, method, percentile, rounding=rounding, seed=seed)
    return float_quantizer(fmt) or number_format(fmt).weight_quantizer(rows, fmt, how)


def calibrate_activation(
    seen: Histogram,
    fmt: Format,
    *,
    scheme: str,
    method: str,
    percentile: float,
    axis: int = -1,
    decay: float = 0.9,
) -> Quantizer:
    """The quantizer of an activation, with one scale for the tensor or one per block.

    Args:
        seen: what the layer read during calibration.
        fmt: any format that activations can have.
        scheme: `symmetric` or `affine`.
        method: `minmax`, `percentile`, `mse`, `entropy`, `octav` or `ema`.
        percentile: for the method of that name.
        axis: along which blocks lie, counted from the end: that of the channels.
        decay: of the moving averages, for `ema`.
    """
    how = Calibration(scheme, method, percentile, axis, decay=decay)
    return float_quantizer(fmt) or number_format(fmt).activation_quantizer(seen, fmt, how)
