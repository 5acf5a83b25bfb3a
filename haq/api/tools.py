"""`haq.inspect`, `cost`, `evaluate`, `sensitivity`, `lint` and `profile` for live objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from haq.api.live import live_experiment
from haq.edges.progress import Silent
from haq.hardware import build_cost_model, load_profile
from haq.hardware.costs import CostReport, cost_report
from haq.lint import Finding, lint_experiment
from haq.profiling.machine import Settings, profile_machine
from haq.profiling.runtimes.choice import RuntimeChoice
from haq.quant import resolve
from haq.quant.settings import QuantizationConfig
from haq.runs.inspect import Inspection, inspect_model
from haq.sensitivity import SensitivityTable
from haq.trace import trace
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.values.trial import Measurement

_SPLIT = "give train data: a DataLoader, a Dataset, an (inputs, targets) pair or a haq.Split"


def inspect(model: nn.Module, example: Any, *, device: str | Path | None = None) -> Inspection:
    """What can be quantized of a model, and what stays in float; runs nothing but a trace.

    Args:
        model: any module.
        example: inputs of one or more samples: a tensor, a tuple of arguments, or a dict of keyword arguments.
        device: name or path of a hardware profile, for the formats of each layer.

    Raises:
        InputError: the model cannot be traced; names the module and the remedy.
    """
    return inspect_model(model, example, profile=None if device is None else load_profile(device))


def cost(model: nn.Module, example: Any, policy: Policy | str, *, device: str | Path) -> CostReport:
    """What a policy costs on a device, layer by layer and switch by switch.

    Args:
        model: any module.
        example: as in `inspect`.
        policy: or one precision for all layers, such as `"w4a8"`.
        device: name or path of a hardware profile.

    Raises:
        InputError: the model cannot be traced, or the device does not run the policy.
    """
    keywords = dict(example) if isinstance(example, Mapping) else {}
    arguments = () if keywords else example if isinstance(example, tuple) else (example,)
    network = trace(model, arguments, example_kwargs=keywords)
    profile = load_profile(device)
    settings = resolve(QuantizationConfig(), profile.quantization)
    cost_model = build_cost_model(
        profile,
        weight_granularity=settings.weight_granularity or "channel",
        group_size=settings.group_size,
        weight_scheme=settings.weight_scheme or "symmetric",
    )
    return cost_report(network, cost_model, _policy(policy, network.layer_names))


def evaluate(
    model: nn.Module,
    policy: Policy | str,
    *,
    train: Any,
    data: Any = None,
    kind: str = "ptq",
    metric: str | Callable[[Any, Any], float] | None = None,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    device: str | Path = "bitfusion",
    settings: Mapping[str, Any] | None = None,
) -> Measurement:
    """What a policy is worth.

    Args:
        model: any module.
        policy: or one precision for all layers.
        train: calibrates (and fine-tunes).
        data: to score on; default: a fifth of `train` that is held out.
        kind: `ptq`, `bn` or `qat`.
        metric: as in `search`.
        loss: as in `search`.
        device: whose quantization settings hold (scale per channel or tensor, ...).
        settings: further keys of an experiment file.

    Raises:
        InputError: something given cannot be used.
    """
    keys = dict(settings or {})
    keys["evaluator"] = {"kind": kind, **keys.get("evaluator", {})}
    experiment = live_experiment(
        model, train=train, search=data, test=data, device=device, metric=metric, loss=loss, settings=keys
    )
    return experiment.evaluator("search")(_policy(policy, experiment.network.layer_names))


def sensitivity(
    model: nn.Module,
    *,
    train: Any,
    device: str | Path,
    metric: str = "fisher",
    samples: int = 512,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> SensitivityTable:
    """How much each format of each layer is predicted to raise the loss.

    Args:
        model: any module.
        train: data.
        device: whose formats are scored.
        metric: of sensitivity: `fisher`, `hessian`, `gradient`, `kl`, `loss` or `sqnr`.
        samples: of `train`.
        loss: as in `search`.
        settings: further keys of an experiment file.

    Raises:
        InputError: something given cannot be used.
    """
    keys = dict(settings or {})
    keys["sensitivity"] = {"metric": metric, "samples": samples, **keys.get("sensitivity", {})}
    return live_experiment(model, train=train, device=device, loss=loss, settings=keys).sensitivity()


def lint(
    model: nn.Module,
    data: Any,
    *,
    device: str | Path,
    precision: str | None = None,
    samples: int = 256,
    settings: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """What makes a model hard to quantize or slow on a device, the most expensive first; see `haq lint`.

    Args:
        model: any module.
        data: as `train` of `search`.
        device: name or path of a hardware profile.
        precision: at which things are measured; default: the lowest of each layer.
        samples: of `data`.
        settings: further keys of an experiment file.

    Raises:
        InputError: something given cannot be used.
    """
    experiment = live_experiment(model, train=data, device=device, settings=settings)
    return lint_experiment(experiment, precision=precision, samples=samples)


def profile(
    model: nn.Module,
    *,
    train: Any,
    out: str | Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    policies: int = 12,
    rounds: int = 30,
) -> dict[str, Any]:
    """Measure this machine for a model and write a hardware profile; see `haq profile`.

    Args:
        model: any module.
        train: calibrates.
        out: the profile, `.toml`.
        runtime: `onnxruntime` or `torch`.
        threads: of one operator.
        policies: mixed ones that the cost of switches is fitted on.
        rounds: interleaved repeats.

    Raises:
        InputError: something given cannot be used.
    """
    experiment = live_experiment(
        model,
        train=train,
        device="xeon_vnni_ort",
        settings={"space": {"weights": ["int8", "fp32"], "activations": ["int8", "fp32"]}},
    )
    settings = Settings(RuntimeChoice(runtime, threads), policies, rounds)
    return profile_machine(
        experiment, Path(out), settings=settings, resume=False, command="haq.profile(...)", show=Silent()
    )


def _policy(policy: Policy | str, layers: tuple[str, ...]) -> Policy:
    if isinstance(policy, Policy):
        return policy
    try:
        return Policy.uniform(layers, Precision.parse(policy))
    except ValueError as error:
        raise InputError(f"policy = {policy!r}: {error}") from error
