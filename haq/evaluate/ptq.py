"""The post-training evaluator: apply a policy, run the data, score."""

from __future__ import annotations

import math
import time
from typing import Literal

from haq.evaluate.scoring import Scoring, SplitEvaluator
from haq.quant import QuantizedModel, correct_bias, reestimate_batch_norm
from haq.quant.nested import Batches
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement


class PTQEvaluator(SplitEvaluator):
    """Scores policies on a split without training.

    Args:
        model: switched to each policy in turn; left at the last one.
        split: what to score on; put on the model's device once.
        kind: `bn` re-estimates batch norm for each policy, whatever the model's quantization settings say.
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
        scoring: Scoring = Scoring(),
    ) -> None:
        super().__init__(model, split, scoring=scoring)
        self._reestimates = kind == "bn" or model.quantization.batch_norm == "reestimate"

    @property
    def fidelity(self) -> str:
        """`bn` if batch norm is re-estimated for each policy, else `ptq`."""
        return "bn" if self._reestimates else "ptq"

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
            if self.model.quantization.bias_correction:
                correct_bias(self.model)
            if self._reestimates:
                reestimate_batch_norm(self.model)
            return self._score(self.model, self.fidelity, start)
        except InputError as error:
            self.float_measurement()
            return Measurement(math.nan, self.fidelity, time.perf_counter() - start, error=str(error))
