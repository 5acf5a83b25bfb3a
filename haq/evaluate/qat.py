"""The fine-tuning evaluator: train under a policy, then score."""

from __future__ import annotations

import math
import time
from typing import Literal

from haq.evaluate.scoring import Scoring, SplitEvaluator
from haq.quant import QuantizedModel
from haq.quant.nested import Batches
from haq.training.fine_tuning import FineTuner
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.trial import Measurement


class QATEvaluator(SplitEvaluator):
    """Scores policies after quantization-aware fine-tuning, or with weights trained once for all policies.

    Args:
        tuner: trains; may serve several evaluators.
        model: the quantized model that `tuner` trains a copy of; scores float.
        split: what to score on; never what `tuner` trains on.
        kind: `qat` trains each policy; `shared` scores it with the tuner's jointly trained weights.
        steps: of a policy's training, in place of the tuner's settings.
        scoring: how the outputs are scored.

    Raises:
        InputError: unknown metric or loss.
    """

    def __init__(
        self,
        tuner: FineTuner,
        model: QuantizedModel,
        split: Batches,
        *,
        kind: Literal["qat", "shared"] = "qat",
        steps: int | None = None,
        scoring: Scoring = Scoring(),
    ) -> None:
        super().__init__(model, split, scoring=scoring)
        self._tuner, self._kind, self._steps = tuner, kind, steps

    @property
    def fidelity(self) -> str:
        """`shared`, `qat`, or `qat:N` for fine-tuning of N steps in place of the settings' own."""
        return self._kind if self._steps is None else f"{self._kind}:{self._steps}"

    def __call__(self, policy: Policy) -> Measurement:
        """Train under `policy` as the kind says, and score.

        A loss, outputs or a score that are not finite, and too little memory, make a `Measurement` with an error.

        Raises:
            InputError: the policy is for another model; or training, metric or loss cannot work.
        """
        start = time.perf_counter()
        tuner = self._tuner
        failure = tuner.apply_shared(policy) if self._kind == "shared" else tuner.train(policy, steps=self._steps)
        if failure is not None:
            return Measurement(math.nan, self.fidelity, time.perf_counter() - start, error=failure.reason)
        try:
            return self._score(lambda inputs: tuner.model(tuner.model.prepared(inputs)), self.fidelity, start)
        except InputError as error:
            self.float_measurement()
            return Measurement(math.nan, self.fidelity, time.perf_counter() - start, error=str(error))
