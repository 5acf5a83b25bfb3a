"""`[quantization]` of the experiment file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from haq.edges.validation import Section

OF_THE_FLOAT_MODEL = ("equalize", "absorb_bias")
"""Repairs that rewrite the float model, once for all policies; networks that are fine-tuned may start from it."""


class QuantizationConfig(Section):
    """How numbers become integers. What is left out comes from the device profile, else from the defaults here."""

    weight_granularity: Literal["tensor", "channel", "group"] | None = None
    """Default: `channel`."""
    group_size: int = Field(64, ge=1)
    weight_scheme: Literal["symmetric", "affine"] | None = None
    """Default: `symmetric`."""
    activation_scheme: Literal["symmetric", "affine"] | None = None
    """Default: `affine`."""
    weight_calibration: Literal["minmax", "percentile", "mse", "balanced", "entropy", "octav"] | None = None
    """Default: `balanced`: squared error with more weight on changes of gain and mean, which do not average out."""
    activation_calibration: Literal["minmax", "percentile", "mse", "entropy", "octav", "ema"] | None = None
    """Default: `mse`."""
    weight_rounding: Literal["nearest", "floor", "ceil", "stochastic"] = "nearest"
    """Of integer weights; `nearest` takes ties to even. Scales are those of `nearest`; fine-tuning knows no other."""
    rounding_seed: int = Field(0, ge=0)
    """Of stochastic rounding."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Of moving averages over calibration batches, for `activation_calibration = "ema"`."""
    percentile: float = Field(99.99, gt=50, le=100)
    calibration_samples: int = Field(512, ge=1)
    batch_norm: Literal["keep", "fold", "reestimate"] = "keep"
    """`fold` into the weights before quantizing; `reestimate` running statistics of each policy on calibration data."""
    bias_correction: bool = False
    repairs: tuple[Literal["equalize", "absorb_bias", "adaround", "gptq", "bias_correction"], ...] = ()
    """What makes up for quantization without training the network, done in this order whatever that of the list:
    `equalize` channel ranges across layers, move high biases on (`absorb_bias`), round weights by data (`adaround` or
    `gptq`), correct biases."""
    repair_iterations: int = Field(10_000, ge=1)
    """Steps of `adaround` for each layer."""

    @model_validator(mode="after")
    def _one_rounding(self) -> QuantizationConfig:
        if len(set(self.repairs)) < len(self.repairs):
            raise ValueError("`repairs` names one twice")
        if {"adaround", "gptq"} <= set(self.repairs):
            raise ValueError("`repairs` has adaround and gptq, which both round the weights; take one")
        if self.bias_correction and "bias_correction" in self.repairs:
            raise ValueError("bias correction is asked for twice, by `bias_correction` and in `repairs`; take one")
        return self
