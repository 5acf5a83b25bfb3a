"""Hutchinson's traces against the whole Hessian of a tiny network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import formats_of, quantize, rows, seeded
from torch import nn

from haq.sensitivity import METRICS
from haq.sensitivity.hessian import hessian_traces
from haq.values.formats import Format
from haq.zoo import Split


@pytest.fixture
def split():
    return Split(rows(4, 12, 4), torch.arange(12) % 3)


@pytest.fixture
def model(split):
    return quantize(seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))), split)


def exact_traces(model, split):
    """Average trace by each layer's weights, and by its input, from `torch.func.hessian`."""
    net = model.module
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def by_weight(name):
        def loss(weight):
            return F.cross_entropy(
                torch.func.functional_call(net, {**parameters, f"{name}.weight": weight}, split.inputs), split.targets
            )

        size = parameters[f"{name}.weight"].numel()
        return float(torch.func.hessian(loss)(parameters[f"{name}.weight"]).reshape(size, size).trace()) / size

    def by_input(first):
        x = split.inputs if first == 0 else net[:first](split.inputs).detach()

        def loss(x):
            return F.cross_entropy(net[first:](x), split.targets)

        return float(torch.func.hessian(loss)(x).detach().reshape(x.numel(), x.numel()).trace()) / x.shape[1]

    return {"weights": {n: by_weight(n) for n in ("0", "2")}, "activations": {"0": by_input(0), "2": by_input(2)}}


def test_traces_agree_with_the_whole_hessian(model, split):
    exact = exact_traces(model, split)
    # Two batches of unequal size: averages must weigh by samples.
    runs = [
        hessian_traces(model, ["0", "2"], split.batches(8), loss=F.cross_entropy, probes=10, seed=seed)
        for seed in range(20)
    ]
    for kind, traces in exact.items():
        for layer, trace in traces.items():
            estimates = np.array([run[kind][layer] for run in runs])
            error = estimates.std(ddof=1) / np.sqrt(len(runs))
            assert abs(estimates.mean() - trace) < 4 * error, (kind, layer)
            assert error < 0.2 * max(abs(value) for value in traces.values()), (kind, layer)


def test_score_is_trace_times_squared_perturbation(model, split):
    formats = formats_of(model, "int3")
    options = {"loss": F.cross_entropy, "probes": 3, "seed": 5}
    traces = hessian_traces(model, ["0", "2"], split.batches(12), **options)
    weights, activations = METRICS["hessian"](model, formats, split.batches(12), **options)
    fmt = Format.integer(3)
    by_weight = (model.quantized_weight("2", fmt) - model.float_weight("2")).square().sum()
    with torch.no_grad():
        read = model.module[:2](split.inputs)
    by_input = (model.activation_quantizer("2", fmt)(read) - read).square().sum(1).mean()
    assert weights["2"]["int3"] == pytest.approx(traces["weights"]["2"] * float(by_weight), rel=1e-5)
    assert activations["2"]["int3"] == pytest.approx(traces["activations"]["2"] * float(by_input), rel=1e-5)


def test_the_seed_decides_the_probes(model, split):
    def first(seed):
        return METRICS["hessian"](model, formats_of(model, "int3"), split.batches(12), loss=F.cross_entropy, seed=seed)

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_a_loss_without_curvature_scores_zero(model, split):
    scores = METRICS["hessian"](
        model, formats_of(model, "int3"), split.batches(12), loss=lambda outputs, targets: outputs.square().mean() * 0
    )
    assert scores[0] == {"0": {"int3": 0.0}, "2": {"int3": 0.0}}
