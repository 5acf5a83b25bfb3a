"""The post-training evaluator: apply a policy, run the data, score."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from haq.evaluate.scoring import Scoring, SplitEvaluator
from haq.quant import QuantizedModel, reestimate_batch_norm
from haq.quant.nested import Batches
from haq.repair import RepairedWeights, in_order, repair
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.rung import REPAIRING
from haq.values.trial import Measurement


class PTQEvaluator(SplitEvaluator):
    """Scores policies on a split without training.

    Args:
        model: switched to each policy in turn; left at the last one.
        split: what to score on; put on the model's device once.
        kind: `bn` re-estimates batch norm for each policy, whatever the model's quantization settings say.
        repairs: names in `haq.repair.ORDER`, in that order; default: what the model's quantization settings ask for.
        store: keeps what repairs round.
        scoring: how the outputs are scored.

    Raises:
        InputError: unknown metric or loss.
    """

    def __init__(
        self,
        model: QuantizedModel,
        split: Batches,
        *,
        kind: Literal["ptq", "bn"] = "ptq",
        repairs: Sequence[str] | None = None,
        store: RepairedWeights | None = None,
        scoring: Scoring = Scoring(),
    ) -> None:
        super().__init__(model, split, scoring=scoring)
        self._repairs = in_order(model.quantization) if repairs is None else tuple(repairs)
        self._store = store or RepairedWeights(None, {})
        self._reestimates = kind == "bn" or model.quantization.batch_norm == "reestimate"

    @property
    def fidelity(self) -> str:
        """`adaround` or `gptq` where weights are rounded by data; else `bn` if batch norm is re-estimated for each
        policy, or `ptq`."""
        rounding = next((name for name in self._repairs if name in REPAIRING), None)
        return rounding or ("bn" if self._reestimates else "ptq")

    def __call__(self, policy: Policy) -> Measurement:
        """Apply `policy`, run the compensations that the settings ask for, and score.

        What fails under this policy but not in float makes a `Measurement` with an error, and so do outputs or a score
        that are not finite.

        Raises:
            InputError: the policy is for another model; or model, metric or loss fail in float as well.
        """
        start = time.perf_counter()
        self.model.apply(policy)
        try:
            seconds = repair(self.model, self._repairs, self._store)
            if self._reestimates:
                reestimate_batch_norm(self.model)
            measured = self._score(self.model, self.fidelity, start)
            details = {f"{name}_seconds": value for name, value in seconds.items()}
            return replace(measured, details={**measured.details, **details}) if details else measured
        except InputError as error:
            self.float_measurement()
            return Measurement(math.nan, self.fidelity, time.perf_counter() - start, error=str(error))
