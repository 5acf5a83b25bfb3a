"""The engine equals the specification, and both equal what was quantized."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from integer_models import MODELS, lowered, quantized
from torch import nn

from haq.deployed.state import capture
from haq.engine import (
    IntegerModel,
    IntegerRunner,
    LoweringOptions,
    Node,
    TensorFormat,
    load_integer,
    lower,
    save_integer,
    specification,
)
from haq.engine.dyadic import ROUNDINGS, Dyadic, dyadic, rescale
from haq.engine.proof import channel_bounds
from haq.engine.rescaling import rescale as rescale_tensor
from haq.quant import QuantizedModel
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DATASETS, load_model


@pytest.mark.parametrize(
    ("policy", "rounding", "nonlinear"),
    [
        ("w8a8", "half_away", "table"),
        ("w8a8", "gemmlowp", "polynomial"),
        ("mixed", "half_even", "polynomial"),
        ("low", "half_up", "table"),
    ],
)
@pytest.mark.parametrize("kind", MODELS)
def test_the_engine_equals_the_specification_bit_for_bit(kind: str, policy: str, rounding: str, nonlinear: str) -> None:
    model, _, x = lowered(kind, policy, rounding=rounding, nonlinear=nonlinear)
    runner = IntegerRunner(model)
    integers = runner.quantize(x[:2])
    (got,) = runner.integers(integers)
    for index in range(2):
        (wanted,) = specification.run(model, {name: value[index].tolist() for name, value in integers.items()})
        assert got[index].tolist() == wanted


@pytest.mark.parametrize("nonlinear", ["table", "polynomial"])
@pytest.mark.parametrize("kind", MODELS)
def test_integers_compute_what_the_quantized_model_computes(kind: str, nonlinear: str) -> None:
    model, wrapped, x = lowered(kind, "w8a8", nonlinear=nonlinear)
    wanted, got = wrapped(x), IntegerRunner(model)(x)
    # Softmax and GELU in 8 bits and sums that the quantized model keeps in float: within a few 8-bit steps.
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("precision", ["w8a8", "w4a4"])
def test_the_digits_network_agrees_with_its_quantized_model(precision: str) -> None:
    data, model = DATASETS["digits"](), load_model("digits_cnn")
    wrapped = QuantizedModel(model, calibration=list(data.train.head(256).batches(256)))
    wrapped.apply(Policy.uniform(wrapped.layers, Precision.parse(precision)))
    runner = IntegerRunner(lower(model, capture(wrapped), data.train.head(128).inputs))
    images = data.test.inputs
    with torch.no_grad():
        same = runner(images).argmax(1) == wrapped(images).argmax(1)
    assert same.double().mean() >= 0.995


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_tensors_are_rescaled_as_integers_are(rounding: str) -> None:
    rng = random.Random(0)
    for _ in range(300):
        by = dyadic(rng.choice([-1, 1]) * 2.0 ** rng.uniform(-20, 0))
        by = rng.choice([by, Dyadic(1 << 30, rng.randint(-8, 1))])  # powers of two make ties
        values = [rng.randint(-(2**29), 2**29) for _ in range(20)] + list(range(-9, 10))
        tensor = rescale_tensor(torch.tensor(values), torch.tensor(by.multiplier), torch.tensor(by.exponent), rounding)
        assert tensor.tolist() == [rescale(value, by, rounding) for value in values]


@pytest.mark.parametrize(
    ("rounding", "wanted"),
    [
        ("half_away", [-2, -1, 1, 2]),
        ("half_even", [-2, 0, 0, 2]),
        ("half_up", [-1, 0, 1, 2]),
        ("gemmlowp", [-1, 0, 1, 2]),
    ],
)
def test_ties_go_where_the_rounding_says(rounding: str, wanted: list[int]) -> None:
    assert [rescale(value, dyadic(0.5), rounding) for value in (-3, -1, 1, 3)] == wanted


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.75, 1e-4, 0.99999999999, -0.3, 3.7])
def test_a_dyadic_factor_is_within_half_a_unit_of_31_bits(factor: float) -> None:
    assert abs(dyadic(factor).value / factor - 1) <= 2.0**-31


def _linear(weights: list[list[int]], read: TensorFormat, bias: int = 0) -> IntegerModel:
    out = len(weights)
    arrays = {
        "weight": np.array(weights, dtype=np.int16),
        "weight_zero": np.zeros(out, dtype=np.int32),
        "bias": np.full(out, bias, dtype=np.int32),
        "multiplier": np.full(out, 1 << 30, dtype=np.int32),
        "exponent": np.zeros(out, dtype=np.int32),
    }
    nodes = (
        Node("x", "input", (), (len(weights[0]),), read),
        Node("fc", "linear", ("x",), (out,), TensorFormat(-(2**31), 2**31 - 1, 0, 1.0), {}, arrays, "fc"),
    )
    return IntegerModel(nodes, ("fc",), "half_away", {"fc": "w8a8"})


def test_bounds_are_those_of_the_worst_inputs() -> None:
    read = TensorFormat(-128, 127, -3, 1.0)
    weights = np.random.default_rng(0).integers(-5, 5, (3, 6))
    least, greatest = channel_bounds(_linear(weights.tolist(), read).nodes[1], read)
    ends = np.array(np.meshgrid(*[[-125, 130]] * 6)).reshape(6, -1)
    assert (least.tolist(), greatest.tolist()) == ((weights @ ends).min(1).tolist(), (weights @ ends).max(1).tolist())


def test_an_accumulator_that_may_overflow_is_refused() -> None:
    wide = TensorFormat(-(2**15), 2**15 - 1, 0, 1.0)
    model = _linear([[2**14] * 4], wide, bias=2**30)
    with pytest.raises(InputError, match=r"layer 'fc': output channel 0 may reach .* 32-bit accumulator"):
        IntegerRunner(model)
    IntegerRunner(_linear([[2**14]], wide, bias=2**30))


def test_the_file_gives_the_same_model_back(tmp_path: Path) -> None:
    model, _, x = lowered("joins", "mixed")
    save_integer(model, tmp_path / "m.safetensors")
    again = load_integer(tmp_path / "m.safetensors")
    assert torch.equal(IntegerRunner(model)(x), IntegerRunner(again)(x))
    assert again.policy == model.policy


def test_a_file_with_a_missing_array_is_refused(tmp_path: Path) -> None:
    model, _, _ = lowered("joins", "w8a8")
    nodes = tuple(replace(node, inputs=("nowhere",)) if node.op == "linear" else node for node in model.nodes)
    save_integer(replace(model, nodes=nodes), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="reads 'nowhere', which is not computed before it"):
        load_integer(tmp_path / "m.safetensors")


class _Erfinv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(self.fc(x.flatten(1)[:, :4]), 1)


def test_an_operator_without_integer_form_is_named() -> None:
    model = _Erfinv()
    x = torch.randn(8, 4)
    wrapped = QuantizedModel(model, calibration=[(x, None)])
    wrapped.apply(Policy.uniform(wrapped.layers, Precision.parse("w8a8")))
    with pytest.raises(InputError, match=r"operator cumsum .*has no integer form.*float operator stands in"):
        lower(model, capture(wrapped), x)


@pytest.mark.parametrize(
    ("precision", "message"),
    [("wfp32afp32", "has float weights"), ("w8afp32", "has float activations"), ("w8a12", "reads int12")],
)
def test_formats_that_are_no_small_integers_are_refused(precision: str, message: str) -> None:
    model, wrapped, x = quantized("joins", "w8a8")
    wrapped.set_precision("head", Precision.parse(precision))
    with pytest.raises(InputError, match=f"layer 'head'.* {message}|layer 'head' {message}"):
        lower(model, capture(wrapped), x)


def test_scales_of_groups_are_refused() -> None:
    model, wrapped, x = quantized("joins", "w8a8", weight_granularity="group", group_size=4)
    with pytest.raises(InputError, match="scale for each group of 4"):
        lower(model, capture(wrapped), x)


@pytest.mark.parametrize("key", ["rounding", "nonlinear", "output_bits"])
def test_an_unknown_option_lists_the_known_ones(key: str) -> None:
    with pytest.raises(InputError, match="unknown; known: "):
        LoweringOptions(**{key: "no"})  # type: ignore[arg-type]
