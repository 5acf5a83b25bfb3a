"""`[evaluator]` of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from haq.edges.validation import Section
from haq.training.settings import QATConfig
from haq.values.rung import PATTERN, Rung

RungName = Annotated[str, Field(pattern=PATTERN)]
"""`ptq`, `bn`, `adaround`, `gptq`, `shared`, `qat`, or `qat:STEPS`: fine-tuning of so many steps."""


class EvaluatorConfig(Section):
    """How a policy is measured."""

    kind: Literal["ptq", "bn", "adaround", "gptq", "qat", "shared"] = "ptq"
    """After training; with batch norm re-estimated; with weights rounded by data; fine-tuned; with weights trained once
    for all policies."""
    samples: int | None = Field(None, ge=1)
    """Samples of the search split to score on; all when left out."""
    batch_size: int = Field(64, ge=1)
    metric: str = "accuracy"
    """A name in `haq.evaluate.METRICS` (`accuracy`, `mean_iou`, `negative_perplexity`, `negative_mse`, `cosine`,
    `sqnr`, against the float model `agreement` and `negative_kl`, ...), or your own `module:function(outputs, targets)`
    -> mean score, larger is better."""
    loss: str = "cross_entropy"
    """`cross_entropy`, `mse`, `kl_divergence` from the float model, or your own `module:function(outputs, targets)` ->
    scalar tensor."""
    class_axis: int | None = None
    """Dimension of the outputs that holds the classes, counted from the end if negative; needed where there are three
    or more and the labels do not say it."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`: a CUDA GPU where torch sees one (with Ray: where workers reserve one), else the CPU; or `cpu`, `cuda`,
    `cuda:1`."""
    amp: bool = False
    """Policies are scored in bfloat16 autocast: less exact, and faster where the processor computes in bfloat16."""
    qat: QATConfig | None = None
    """How `qat` and `shared` train."""
    ladder: tuple[RungName, ...] = ()
    """Fidelities, cheapest first: the search measures on the first, its best policies climb to the last."""
    reduction: float = Field(3.0, gt=1)
    """Of the ladder: keep 1 in N from rung to rung."""

    @property
    def rungs(self) -> tuple[str, ...]:
        """The ladder, or the one kind there is."""
        return self.ladder or (self.kind,)

    @property
    def trains(self) -> bool:
        """Whether a policy is trained, alone or jointly, on some rung."""
        return any(Rung(rung).trains for rung in self.rungs)

    @field_validator("class_axis")
    @classmethod
    def _classes_are_no_samples(cls, axis: int | None) -> int | None:
        if axis == 0:
            raise ValueError("dimension 0 counts samples; name that of the classes, such as 1 or -1")
        return axis

    @model_validator(mode="after")
    def _training_is_used(self) -> EvaluatorConfig:
        if self.qat is not None and not self.trains:
            raise ValueError("`qat` settings need kind = 'qat' or 'shared', or a ladder with such a rung")
        if self.qat is not None and self.qat.data_parallel > 1 and "shared" in self.rungs:
            raise ValueError("`qat.data_parallel` trains one policy; 'shared' trains many at once: leave out one")
        return self

    @model_validator(mode="after")
    def _ladder_fits(self) -> EvaluatorConfig:
        if self.ladder and (len(self.ladder) < 2 or len(set(self.ladder)) < len(self.ladder)):
            raise ValueError("`ladder` needs two rungs or more, each once")
        if self.ladder and self.ladder[0] != self.kind:
            raise ValueError(
                f"`ladder` begins with {self.ladder[0]!r}, the search measures {self.kind!r}: make kind the same"
            )
        if not self.ladder and self.reduction != 3.0:
            raise ValueError("`reduction` needs a `ladder`")
        return self
