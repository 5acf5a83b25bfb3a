"""The one place that says what is replaced, and by what."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from haq.modules.attention import SplitAttention
from haq.modules.embedding import Bag
from haq.modules.products import linear_of
from haq.modules.recurrent import Cell, Unrolled

Keep = Callable[[str, nn.Module], bool]
"""`(qualified name, module)` -> whether it stays as it is."""

_PREPARED = "_haq_prepared"
_REPLACED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.MultiheadAttention: SplitAttention,
    nn.LSTM: Unrolled,
    nn.GRU: Unrolled,
    nn.RNN: Unrolled,
    nn.LSTMCell: Cell,
    nn.GRUCell: Cell,
    nn.RNNCell: Cell,
    nn.EmbeddingBag: Bag,
}


def prepare(model: nn.Module, *, keep: Keep = lambda name, module: False) -> nn.Module:
    """`model` with its packed modules taken apart and its computed weights made plain ones, in evaluation mode.

    Attention, recurrent layers and bags of embeddings become modules whose weights are those of linear layers and
    embeddings; weights that a parametrization, a weight or spectral norm or pruning computes are computed once. The
    result computes the same, to rounding; models of Hugging Face return no caches. A model that needs none of this is
    returned as it is; otherwise the result is a copy that shares the parameters it can share; `model` is left alone.

    Args:
        model: any module.
        keep: which modules to leave.
    """
    if getattr(model, _PREPARED, False):
        return model
    chosen = {name for name, module in model.named_modules() if _is_packed(module) or _is_computed(module)}
    kept = {name for name in chosen if keep(name, model.get_submodule(name))}
    if not chosen and not any(_caches(model)):
        return model
    owned = {
        id(parameter)
        for name in chosen - kept
        if _is_computed(model.get_submodule(name))
        for parameter in model.get_submodule(name).parameters()
    }
    memo: dict[int, Any] = {id(p): p for p in model.parameters() if id(p) not in owned}
    memo |= {id(value): value.detach().clone() for value in _computed_tensors(model)}
    result = copy.deepcopy(model, memo)
    for module in result.modules():
        module.training = False
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # decided when it was built, from the attention that it had then
    for config in _caches(result):
        config.use_cache = False
    done: dict[int, nn.Module] = {}
    for name in chosen - kept:
        module = result.get_submodule(name)
        if _is_computed(module):
            _bake(module)
        if _is_packed(module):
            result = _put(result, module, done.setdefault(id(module), _replacement(module)))
    setattr(result, _PREPARED, True)
    return result


def _caches(model: nn.Module) -> Iterator[Any]:
    """The configurations (of Hugging Face's models) that ask for caches of keys and values among the outputs."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            yield config


def _put(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`new` wherever `old` stands."""
    if root is old:
        return new
    for parent in root.modules():
        for child, module in parent._modules.items():
            if module is old:
                parent._modules[child] = new
    return root


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is Hugging Face's `Conv1D`, a linear layer whose weight is stored the other way round."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


def _turned(module: Any) -> nn.Module:
    weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=module.weight.requires_grad)
    return linear_of(weight, module.bias)


def _packed_class(module: nn.Module) -> type[nn.Module] | None:
    """The class in `_REPLACED` whose forward `module` runs."""
    return next(
        (cls for cls in _REPLACED if isinstance(module, cls) and type(module).forward is cls.forward),
        None,
    )


def _is_packed(module: nn.Module) -> bool:
    return _packed_class(module) is not None or _is_transposed_linear(module)


def _replacement(module: nn.Module) -> nn.Module:
    cls = _packed_class(module)
    made = _turned(module) if cls is None else _REPLACED[cls](module)
    made._forward_hooks, made._forward_pre_hooks = module._forward_hooks, module._forward_pre_hooks
    return made


def _old_style(module: nn.Module) -> list[Any]:
    """Hooks of torch's older weight norm, spectral norm and pruning."""
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm | prune.BasePruningMethod)]


def _computed_tensors(model: nn.Module) -> Iterator[Tensor]:
    """What such hooks left in attributes, which torch does not copy."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf)


def _is_computed(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or bool(_old_style(module))


def _bake(module: nn.Module) -> None:
    """Make the computed weights of `module` plain parameters, with the values that evaluation mode gives."""
    if parametrize.is_parametrized(module):
        # Not `remove_parametrizations`, which takes the weight from the class that a copy shares with its model.
        names = list(cast(Any, module).parametrizations)
        values = {name: getattr(module, name).detach().clone() for name in names}
        plain = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        module.__class__ = plain
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    for hook in _old_style(module):
        if isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(module, hook.name)
        else:
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def plain_paths() -> Iterator[None]:
    """For the block, without torch's fused attention in evaluation mode, which runs past modules and their hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
