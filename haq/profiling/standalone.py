"""What everyone's lookup table holds: each layer timed alone, in a model of its own, with float inputs and outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from haq.edges.progress import Reporter
from haq.profiling.runtimes.base import FLOAT
from haq.profiling.runtimes.choice import RuntimeChoice, build_runtime
from haq.profiling.timing import measure_rounds, medians
from haq.quant import QuantizedModel
from haq.values.formats import Precision
from haq.values.network import Network
from haq.values.policy import Policy

_SAMPLES = 8
_ROUNDS = 5
_ALONE = "0"


def standalone_times(
    model: nn.Module, network: Network, low: Precision, *, choice: RuntimeChoice, show: Reporter
) -> dict[tuple[str, Precision], float]:
    """`(layer, precision)` -> milliseconds of all its calls, each timed alone.

    Args:
        model: the float model.
        network: its layers.
        low: the low precision compared with float.
        choice: of the runtime.
        show: shows progress.
    """
    times = {}
    for index, layer in enumerate(network.layers):
        show.step(index, len(network.layers))
        alone = nn.Sequential(copy.deepcopy(model.get_submodule(layer.name))).eval()
        inputs = torch.randn(_SAMPLES, *layer.input_shape, generator=torch.Generator().manual_seed(index))
        quantized = QuantizedModel(alone, calibration=[(inputs, None)])
        running = build_runtime(choice, alone, quantized, inputs)
        precisions = {str(precision): precision for precision in (FLOAT, low)}
        prepared = {key: running.prepare(Policy({_ALONE: precision})) for key, precision in precisions.items()}
        rounds: list[dict[str, float]] = []
        measure_rounds(prepared, _ROUNDS, threads=choice.threads, done=rounds.append)
        for key, ms in medians(rounds).items():
            times[layer.name, precisions[key]] = layer.calls * ms
    return times


def summed(times: dict[tuple[str, Precision], float], policies: Sequence[Policy]) -> list[float]:
    """The sum of the layers' times of each policy."""
    return [sum(times[item] for item in policy.items()) for policy in policies]
