"""The checks that a kind of cost model must pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from haq.hardware import COST_MODELS, build_cost_model, parse_profile
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.network import LayerSpec, Tensor
from haq.values.trial import Cost

_FOREIGN = Precision(Format.integer(13), Format.integer(13))
"""A precision that no document of these checks may offer."""


def sample_layers() -> tuple[LayerSpec, ...]:
    """A dense, a pointwise and a depthwise convolution, and a linear layer, small enough to work out by hand."""
    return (
        _convolution("dense", 16, 32, 3),
        _convolution("pointwise", 32, 64, 1),
        _convolution("depthwise", 64, 64, 3, groups=64),
        LayerSpec(
            name="linear",
            kind="linear",
            weight_shape=(10, 64),
            macs=640,
            params=640,
            bias_elements=10,
            input_elements=64,
            output_elements=10,
            input_shape=(64,),
            output_shape=(10,),
        ),
    )


def _convolution(name: str, inputs: int, outputs: int, kernel: int, *, groups: int = 1, size: int = 8) -> LayerSpec:
    positions = size * size
    return LayerSpec(
        name=name,
        kind="conv2d",
        weight_shape=(outputs, inputs // groups, kernel, kernel),
        macs=positions * outputs * (inputs // groups) * kernel * kernel,
        params=outputs * (inputs // groups) * kernel * kernel,
        bias_elements=outputs,
        input_elements=inputs * positions,
        output_elements=outputs * positions,
        input_shape=(inputs, size, size),
        output_shape=(outputs, size, size),
        groups=groups,
        stride=(1, 1),
    )


def check_cost_model(document: Mapping[str, Any], *, folder: Path = Path()) -> None:
    """Run every check of a kind of cost model on a profile of that kind.

    Args:
        document: a complete profile with the keys of the file, as TOML gives them; its kind must be registered.
        folder: where the files lie that it names.

    Raises:
        AssertionError: says what the kind did wrong.
    """
    profile = parse_profile(document, folder=folder)
    _require(parse_profile(profile.to_doc(), folder=folder).to_doc() == profile.to_doc(), "to_doc() does not read back")
    model: Any = build_cost_model(profile)
    for layer in sample_layers():
        for precision in model.supported(layer):
            _check_cost(model, layer, precision)
        _refuses(partial(model.layer_cost, layer, _FOREIGN), f"a {layer.name} layer in {_FOREIGN}")
    _check_switches(model)
    _check_section(document, folder)
    _check_rates(document, folder)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _refuses(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except InputError as error:
        _require("\n" not in str(error) and bool(str(error)), f"{what}: the message must be one line")
        return
    raise AssertionError(f"{what} must be refused with an InputError")


def _check_cost(model: Any, layer: LayerSpec, precision: Precision) -> None:
    cost: Cost = model.layer_cost(layer, precision)
    where = f"{layer.name} in {precision}"
    for metric in ("latency_ms", "energy_mj", "size_bytes", "bops"):
        value = getattr(cost, metric)
        _require(math.isfinite(value) and value >= 0, f"{where}: {metric} is {value}")
        if metric not in model.metrics:
            _require(value == 0, f"{where}: {metric} is {value}, but the model does not claim to know it")
    if "latency_ms" in model.metrics:
        _require(cost.latency_ms > 0, f"{where}: latency_ms is 0")
    _require(model.layer_cost(layer, precision) == cost, f"{where}: asked twice, the cost differs")


def _check_switches(model: Any) -> None:
    tensor = Tensor(name="dense", producer="dense", consumers=("pointwise",), elements=2048)
    formats = sorted({precision.activation for layer in sample_layers() for precision in model.supported(layer)})
    for written in formats:
        _require(model.switch_cost(tensor, written, written) == Cost(), f"{written} -> {written} must be free")
        for wanted in formats:
            cost = model.switch_cost(tensor, written, wanted)
            fine = all(math.isfinite(value) and value >= 0 for value in (cost.latency_ms, cost.energy_mj))
            _require(fine, f"a switch {written} -> {wanted} costs {cost}")


def _check_section(document: Mapping[str, Any], folder: Path) -> None:
    kind = document["kind"]
    schema = COST_MODELS[kind].section
    if schema is None:
        return
    without = {key: value for key, value in document.items() if key != kind}
    _refuses(lambda: parse_profile(without, folder=folder), f"a profile of kind {kind!r} without [{kind}]")
    unknown = {**document, kind: {**document[kind], "no_such_key": 1}}
    _refuses(lambda: parse_profile(unknown, folder=folder), f"an unknown key in [{kind}]")
    other = next(name for name, model in COST_MODELS.items() if model.section is not None and name != kind)
    surplus = {**document, other: {}}
    _refuses(lambda: parse_profile(surplus, folder=folder), f"a section [{other}] in a profile of kind {kind!r}")


def _check_rates(document: Mapping[str, Any], folder: Path) -> None:
    """Without a clock or a bandwidth the profile is refused, or its costs are finite: nothing divides by 0."""
    for section, key in (("device", "frequency_mhz"), ("memory", "bandwidth_gb_per_s")):
        if key not in document.get(section, {}):
            continue
        less: dict[str, Any] = copy.deepcopy(dict(document))
        del less[section][key]
        try:
            model: Any = build_cost_model(parse_profile(less, folder=folder))
        except InputError:
            continue
        for layer, precision in _cases(model):
            _check_cost(model, layer, precision)


def _cases(model: Any) -> Iterator[tuple[LayerSpec, Precision]]:
    for layer in sample_layers():
        for precision in model.supported(layer):
            yield layer, precision
