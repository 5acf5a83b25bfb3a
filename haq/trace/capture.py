"""The public `trace`: capture with `torch.export`, then one walk over the graph."""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from haq.modules import plain_paths, prepare
from haq.trace.graph import build_network
from haq.trace.layers import is_layer
from haq.trace.leftovers import held_tensors
from haq.trace.names import ModelNames
from haq.values.errors import InputError
from haq.values.kinds import module_names
from haq.values.network import Network

_REGIONS = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})


def trace(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    float_modules: Sequence[str] = (),
) -> Network:
    """Describe `model` as layers, tensors between them, joins and memory steps.

    Every call of a module in `haq.values.kinds` (or of a subclass that multiplies with its plain `weight`) is one by
    the module's first qualified name. Modules called several times, or that share one
    weight parameter, are one layer; modules that are never called are left out. Everything else stays in float and is
    looked through. The model runs on fake tensors in evaluation mode and is left exactly as it was.

    Args:
        model: any module that `torch.export` captures.
        example_inputs: of `model.forward`; their values do not matter, their shapes do. The leading dimension of the
            first tensor is the batch, which is divided out; tensors with another leading dimension have no batch.
        example_kwargs: keyword inputs of `model.forward`.
        float_modules: names or glob patterns of modules (with what they contain) or parameters that compute with
            weights and are accepted to stay in float; they are looked through like activations.

    Raises:
        InputError: one line that names the module and what to do: it computes with weights outside the layers above,
            cannot be captured, has uninitialised parameters, or has no layer to quantize.
    """
    given, model = model, prepared_model(model, float_modules)
    inputs = _check(model, given, example_inputs, example_kwargs or {}, float_modules)
    batch = next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)).shape[0]
    program = export_program(model, *inputs)
    _inline_regions(program.graph_module)
    signature = program.graph_signature
    network = build_network(
        program.graph_module.graph,
        ModelNames(model, float_modules),
        parameters=dict(signature.inputs_to_parameters),
        inputs={spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT},
        batch=batch,
        held=held_tensors(model, signature),
    )
    if not network.layers:
        raise InputError(
            f"{type(model).__name__} has no layer to quantize: its forward calls no {module_names()} module "
            "(outside float_modules); build it from these modules"
        )
    return network


def prepared_model(model: nn.Module, float_modules: Sequence[str] = ()) -> nn.Module:
    """What is traced: `model` with its packed modules taken apart, apart from those that stay in float."""
    names = ModelNames(model, float_modules)

    def keep(name: str, module: nn.Module) -> bool:
        own = (f"{name}.{parameter}" if name else parameter for parameter, _ in module.named_parameters())
        return names.is_float(name, *own)

    return prepare(model, keep=keep)


def _check(
    model: nn.Module, given: nn.Module, inputs: Any, kwargs: Mapping[str, Any], float_modules: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if is_layer(model):
        raise InputError(
            f"the model is a bare {type(model).__name__}, a layer without a name; wrap it: torch.nn.Sequential(model)"
        )
    if not isinstance(inputs, Tensor | tuple | list):
        raise InputError(
            f"example_inputs is a {type(inputs).__name__}; give a tensor or a tuple of forward's positional inputs, "
            "and named inputs as example_kwargs"
        )
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    first = next((leaf for leaf in tree_leaves((arguments, dict(kwargs))) if isinstance(leaf, Tensor)), None)
    if first is None or first.dim() == 0 or first.shape[0] == 0:
        got = "no tensor" if first is None else f"a tensor of shape {tuple(first.shape)}"
        raise InputError(
            f"the first example input is {got}; give a tensor with at least one sample as leading dimension"
        )
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(parameter):
            raise InputError(
                f"parameter {name!r} of {type(model).__name__} is not initialised yet; "
                "run the model once on an example input before tracing it"
            )
    unknown = [p for p in float_modules if not (_matches_something(given, p) or _matches_something(model, p))]
    if unknown:
        raise InputError(
            f"float_modules: {unknown[0]!r} matches no module and no parameter of {type(model).__name__}; "
            "use qualified names as in model.named_modules()"
        )
    return arguments, dict(kwargs)


def _matches_something(model: nn.Module, pattern: str) -> bool:
    names = ModelNames(model, (pattern,))
    return any(names.is_float(name) for name, _ in [*model.named_modules(), *model.named_parameters()])


def export_program(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """The model as a flat graph of ATen operators, in evaluation mode; the model is left exactly as it was.

    Raises:
        InputError: `torch.export` cannot capture it; names the module and the line.
    """
    with _unchanged(model), _quiet(), plain_paths():
        for module in model.modules():
            module.training = False  # not eval(): a model's own train() may do more than set flags
        try:
            return torch.export.export(model, inputs, kwargs, strict=False)
        except Exception as error:  # torch.export lets whatever the model raises through
            raise InputError(_capture_failure(model, error)) from error


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give every module its attributes back, with the containers among them: a forward may store fake tensors."""
    saved: list[tuple[Any, Any]] = []
    for module in model.modules():
        attributes = vars(module)
        containers = [value for value in attributes.values() if isinstance(value, dict | list)]
        saved += [(container, container.copy()) for container in (attributes, *containers)]
    try:
        yield
    finally:
        for container, content in saved:
            container.clear()
            container.update(content) if isinstance(container, dict) else container.extend(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what `torch.export` prints, logs and warns about off the user's terminal."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _capture_failure(model: nn.Module, error: Exception) -> str:
    where = _failing_code(model, error)
    if "data-dependent" in str(error) or "DataDependent" in type(error).__name__:
        return (
            f"{where}: control flow depends on the values of a tensor, which torch.export cannot capture; "
            "compute both branches and choose with torch.where, or decide from shapes and attributes"
        )
    reason = " ".join(str(error).split("\n", 1)[0].split())[:200]
    return (
        f"{where}: torch.export cannot capture it ({type(error).__name__}: {reason}); "
        "check that the model runs on the example inputs"
    )


def _failing_code(model: nn.Module, error: Exception) -> str:
    """The innermost module of `model` that was running, and the line in the user's own code."""
    names = {id(module): name for name, module in model.named_modules()}
    running, source = model, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        caller = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(caller, nn.Module) and id(caller) in names:
            running = caller
            if not code.co_filename.startswith((str(Path(torch.__file__).parent), __file__)):
                text = linecache.getline(code.co_filename, line).strip()
                source = f", {Path(code.co_filename).name}:{line}" + (f" `{text}`" if text else "")
    name = names[id(running)]
    kind = type(running).__name__
    return (f"module {name!r} ({kind})" if name else f"model {kind}") + source


def _inline_regions(module: GraphModule) -> None:
    """Put the bodies of `torch.no_grad()` and `torch.autocast()` regions in place of their calls."""
    graph = module.graph
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") not in _REGIONS:
            continue
        index, holder = next(
            (i, arg) for i, arg in enumerate(node.args) if isinstance(arg, Node) and arg.op == "get_attr"
        )
        body = getattr(module, str(holder.target))
        _inline_regions(body)
        inner = (inner for inner in body.graph.nodes if inner.op == "placeholder")
        with graph.inserting_before(node):
            outputs: Any = graph.graph_copy(body.graph, dict(zip(inner, node.args[index + 1 :], strict=True)))
        for user in list(node.users):
            user.replace_all_uses_with(outputs[user.args[1]])  # getitem(node, index)
            graph.erase_node(user)
        graph.erase_node(node)
