"""Repairs in the field's order: equalize, absorb biases, round the weights, correct biases."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from haq.quant import QuantizedModel, correct_bias
from haq.quant.settings import OF_THE_FLOAT_MODEL, QuantizationConfig
from haq.repair.adaround import adaround
from haq.repair.gptq import gptq
from haq.repair.grid import Grid, LayerData
from haq.repair.store import RepairedWeights
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.rung import REPAIRING

ORDER = ("equalize", "absorb_bias", "adaround", "gptq", "bias_correction")


def in_order(quantization: QuantizationConfig) -> tuple[str, ...]:
    """The repairs that settings ask for under each policy, first what is done first; those of the float
    model are done before."""
    asked = {*quantization.repairs, *(["bias_correction"] if quantization.bias_correction else [])}
    return tuple(name for name in ORDER if name in asked and name not in OF_THE_FLOAT_MODEL)


def with_repair(repairs: Sequence[str], name: str) -> tuple[str, ...]:
    """`repairs` with a rounding of the weights in place of the one that they may have."""
    kept = {one for one in repairs if one not in REPAIRING} | {name}
    return tuple(one for one in ORDER if one in kept)


def repair(model: QuantizedModel, repairs: Sequence[str], store: RepairedWeights) -> dict[str, float]:
    """Repair `model` under the policy in use, until the next one is applied.

    Layers whose formats have no integer grid (floats, ternary, binary, codebooks, ...) keep their weights.

    Args:
        model: with a policy applied.
        repairs: as `in_order` gives them.
        store: keeps rounded weights.

    Returns:
        Repair -> seconds.

    Raises:
        InputError: too little data, or a name that is no repair.
    """
    seconds = {}
    for name in repairs:
        start = time.perf_counter()
        if name in REPAIRING:
            _round(model, name, store)
        elif name == "bias_correction":
            correct_bias(model)
        else:
            raise InputError(f"quantization.repairs: {name!r} is no repair of a policy; known: {', '.join(ORDER)}")
        seconds[name] = time.perf_counter() - start
    return seconds


def _round(model: QuantizedModel, method: str, store: RepairedWeights) -> None:
    policy = model.policy
    if policy is None:
        return
    rounded = {name: _weight(model, method, name, precision, store) for name, precision in policy.items()}
    model.apply(policy)
    for name, weight in rounded.items():
        if weight is not None:
            model.repair_weight(name, weight.to(model.float_weight(name).dtype))


def _weight(
    model: QuantizedModel, method: str, name: str, precision: Precision, store: RepairedWeights
) -> Tensor | None:
    grid = Grid.of(model, name, precision.weight)
    if grid is None:
        return None
    key = store.key(method, name, precision)
    known, weight = store.get(key)
    if not known:
        data = LayerData.of(model, name, precision)
        if method == "gptq":
            weight = gptq(model, name, data, grid)
        else:
            iterations = model.quantization.repair_iterations
            weight = adaround(model, name, data, grid, iterations=iterations, seed=store.seed)
        store.put(key, None if weight is None else weight.cpu())
    return None if weight is None else weight.to(model.device)
