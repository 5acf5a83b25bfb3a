"""Popcount kernels against numpy and torch in integers."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from integer_models import MODELS, lowered

from haq.deployed.state import capture
from haq.engine import IntegerRunner, LoweringOptions, lower
from haq.engine.popcount import PackedLayer, PopcountRunner, Scheme, compiler, paths
from haq.engine.popcount.compiled import load
from haq.quant import QuantizedModel
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
SCHEMES = [
    Scheme("binary"),
    Scheme("ternary"),
    Scheme("serial", 2, 2),
    Scheme("serial", 3, 2),
    Scheme("serial", 2, 2, signed=True),
    Scheme("serial", 3, 1),
]


def codes(rng: np.random.Generator, scheme: Scheme, shape: tuple[int, ...], weight: bool) -> np.ndarray:
    if scheme.form == "binary":
        return rng.choice(np.array([-1, 1], dtype=np.int8), shape)
    if scheme.form == "ternary":
        return rng.integers(-1, 2, shape, dtype=np.int8)
    bits = scheme.weight_bits if weight else scheme.activation_bits
    low = -(1 << bits - 1) if weight or scheme.signed else 0
    return rng.integers(low, low + (1 << bits), shape, dtype=np.int8)


@pytest.mark.parametrize("path", ["portable", "popcnt", "avx2"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_random_convolutions_equal_torch_in_float64(scheme: Scheme, path: str) -> None:
    if path not in paths():
        pytest.skip("not on this processor")
    rng = np.random.default_rng(0)
    for _ in range(40):
        channels, outputs = int(rng.integers(1, 330)), int(rng.integers(1, 11))
        kernel = tuple(int(v) for v in rng.integers(1, 4, 2))
        stride, dilation = ([int(v) for v in rng.integers(1, 3, 2)] for _ in range(2))
        top, left, bottom, right = padding = [int(v) for v in rng.integers(0, 3, 4)]
        x = codes(rng, scheme, (2, channels, 6, 7), weight=False)
        weight = codes(rng, scheme, (outputs, channels, *kernel), weight=True)
        padded = F.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
        expected = F.conv2d(padded, torch.from_numpy(weight).double(), None, stride, 0, dilation)
        layer = PackedLayer(weight, scheme, path=path)
        assert np.array_equal(layer.conv(x, stride=stride, padding=padding, dilation=dilation), expected.numpy())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_linear_equals_numpy(scheme: Scheme) -> None:
    rng = np.random.default_rng(1)
    for inputs in (1, 63, 64, 65, 1024, 1500):
        x, weight = codes(rng, scheme, (5, inputs), False), codes(rng, scheme, (7, inputs), True)
        for path in paths():
            sums = PackedLayer(weight, scheme, path=path).linear(x)
            assert np.array_equal(sums, x.astype(np.int64) @ weight.T.astype(np.int64))


@pytest.mark.parametrize("policy", ["low", "mixed"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_network_runs_as_the_engine_does(kind: str, policy: str) -> None:
    model, _, x = lowered(kind, policy)
    runner = PopcountRunner(model)
    assert torch.equal(runner(x), IntegerRunner(model)(x))


def test_binary_ternary_and_few_bit_layers_of_a_network_are_packed() -> None:
    torch.manual_seed(0)
    stack = torch.nn.Sequential(*[torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)])
    wrapped = QuantizedModel(stack, calibration=[(x := torch.randn(8, 4, 6, 6), None)])
    formats = ("w8a8", "wbinaryabinary", "wternaryaternary", "w2a2")
    names = zip(wrapped.layers, formats, strict=True)
    wrapped.apply(Policy({name: Precision.parse(text) for name, text in names}))
    model = lower(stack, capture(wrapped), x, LoweringOptions())
    runner = PopcountRunner(model)
    assert len(runner.packed) == 3
    assert torch.equal(runner(x), IntegerRunner(model)(x))


def test_values_outside_the_format_are_refused() -> None:
    with pytest.raises(InputError, match="binary weights"):
        PackedLayer(np.zeros((2, 3), dtype=np.int8), Scheme("binary"))
    layer = PackedLayer(np.ones((2, 3), dtype=np.int8), Scheme("ternary"))
    with pytest.raises(InputError, match="ternary activations"):
        layer.linear(np.full((1, 3), 2, dtype=np.int8))
    with pytest.raises(InputError, match="expected"):
        layer.linear(np.ones((1, 4), dtype=np.int8))
    with pytest.raises(InputError, match="known are binary"):
        Scheme("quinary")


def test_without_a_compiler_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, x = lowered("joins", "low")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(UserWarning, match="popcount kernels are off"):
        runner = PopcountRunner(model)
    assert not runner.packed
    assert torch.equal(runner(x), IntegerRunner(model)(x))


def test_without_a_compiler_the_message_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    load.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match="install gcc or clang, or set CC"):
        load("portable")


def test_a_failing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load.cache_clear()
    monkeypatch.setenv("CC", shutil.which("false", path=os.defpath) or "false")
    with pytest.raises(InputError, match="failed on the popcount kernels"):
        load("portable")
