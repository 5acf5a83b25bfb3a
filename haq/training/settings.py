"""`[evaluator.qat]` of the experiment file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from haq.edges.validation import Reference, Section


class QATConfig(Section):
    """How a policy is fine-tuned: quantization-aware training on the train split, from the float model."""

    quantizer: Literal["lsq", "pact", "dorefa", "ste"] = "lsq"
    """Of integer formats."""
    ternary: Literal["twn", "ttq"] = "twn"
    """Of ternary weights: scales that follow the weights, or trained ones."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the fine-tuning data; 1 when `steps` is left out, too."""
    steps: int | None = Field(None, ge=1)
    samples: int | None = Field(None, ge=1)
    """Samples of the train split, from its start; all when left out."""
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of `sgd`."""
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    distillation: Literal["none", "kl", "mse"] = "none"
    """How outputs are drawn to the float model's; those are computed once."""
    distillation_weight: float = Field(0.5, gt=0, le=1)
    """Of the distillation, the rest is the loss itself; 1 needs no targets."""
    temperature: float = Field(1.0, gt=0)
    """Of `kl`."""
    training_step: Reference | None = None
    """Your own `module:function(model, inputs, targets)` -> scalar loss, in place of loss and distillation."""
    start: Literal["calibration", "shared"] = "calibration"
    """`shared`: weights and step sizes of one training over random policies of the space."""
    shared_epochs: float = Field(1.0, gt=0)
    """Of that training."""
    compile: bool = False
    autocast: bool = False
    """Compute in bfloat16 where torch's autocast does."""
    data_parallel: int = Field(1, ge=1)
    """Workers that train one policy together, each with its share of every batch; see docs/qat.md."""
    checkpoint_steps: int = Field(100, ge=1)
    """Of a group: where it goes on after a worker died."""
    compressor: str = "none"
    """Of the gradients between workers: a name that `haq.distributed.compress` knows."""
    compressor_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Of that compressor, such as `{ ratio = 0.01, error_feedback = true }`."""

    @model_validator(mode="after")
    def _no_contradictions(self) -> QATConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either `epochs` or `steps`")
        if self.training_step is not None and self.distillation != "none":
            raise ValueError("`training_step` computes the loss itself; leave out `distillation`")
        if self.distillation == "none" and self.distillation_weight != 0.5:
            raise ValueError("`distillation_weight` needs `distillation`")
        if self.distillation != "kl" and self.temperature != 1.0:
            raise ValueError("`temperature` is for distillation = 'kl'")
        if self.optimizer != "sgd" and self.momentum != 0.9:
            raise ValueError("`momentum` is for optimizer = 'sgd'")
        return self

    @model_validator(mode="after")
    def _a_group_can_train(self) -> QATConfig:
        for name, default in (("checkpoint_steps", 100), ("compressor", "none"), ("compressor_options", {})):
            if self.data_parallel == 1 and getattr(self, name) != default:
                raise ValueError(f"`{name}` needs `data_parallel` of 2 or more")
        if self.data_parallel > 1 and self.start == "shared":
            raise ValueError("`data_parallel` trains one policy; start = 'shared' trains many at once: leave out one")
        if self.data_parallel > 1 and self.compile:
            raise ValueError("`data_parallel` and `compile` cannot be used together; leave out one")
        if self.batch_size % self.data_parallel:
            raise ValueError(f"`batch_size` ({self.batch_size}) must be a multiple of `data_parallel`")
        return self
