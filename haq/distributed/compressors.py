"""The compressors by name, and `compress`, which registers one on a DDP model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from haq.distributed.base import Compressor
from haq.distributed.dgc import DeepGradientCompression
from haq.distributed.feedback import ErrorFeedback
from haq.distributed.hook import CodedCompression, Compression
from haq.distributed.onebit import OneBit
from haq.distributed.qsgd import QSGD
from haq.distributed.randomk import RandomK, UnbiasedRandomK
from haq.distributed.signsgd import SignSGD
from haq.distributed.terngrad import TernGrad
from haq.distributed.topk import TopK
from haq.distributed.torch_hooks import CASTS, CastCompression, PowerSGDCompression
from haq.values.errors import InputError

COMPRESSORS: dict[str, Callable[..., Compressor]] = {
    "onebit": OneBit,
    "signsgd": SignSGD,
    "terngrad": TernGrad,
    "qsgd": QSGD,
    "topk": TopK,
    "randomk": RandomK,
    "randomk_unbiased": UnbiasedRandomK,
    "dgc": DeepGradientCompression,
}
"""Ours. Beside them `compress` knows torch's: `none`, `fp16`, `bf16`, `powersgd`."""

Make = Callable[[DistributedDataParallel], Compression]


def compress(
    model: DistributedDataParallel,
    compressor: str,
    *,
    error_feedback: bool | None = None,
    seed: int = 0,
    **options: Any,
) -> Compression:
    """Send `model`'s gradients compressed from now on. To be called on every worker, once, before the first step.

    Args:
        model: any `DistributedDataParallel` model, on any backend.
        compressor: a name in `COMPRESSORS`, or torch's `none`, `fp16`, `bf16`, `powersgd`.
        error_feedback: add what was not sent to the next gradient; default: where the compressor is biased.
        seed: of what is drawn at random; the same on every worker.
        options: of the compressor, such as `ratio` of `topk`.

    Returns:
        Counters and state; keep its `state_dict()` in each worker's checkpoint.

    Raises:
        InputError: on every worker, if on any the name or an option is wrong, or they do not all ask for the same.
    """
    if not isinstance(model, DistributedDataParallel):
        raise InputError(f"compress: model must be a DistributedDataParallel model (got {type(model).__name__})")
    make, problem = None, None
    try:
        make = _maker(compressor, error_feedback, seed, options)
        if compressor == "powersgd":
            PowerSGDCompression.check_parameters(model)
    except InputError as error:
        problem = str(error)
    shapes = [(name, tuple(p.shape)) for name, p in model.module.named_parameters() if p.requires_grad]
    asked = f"{compressor} {options}, error_feedback={error_feedback}, seed={seed}"
    _agree(model, problem, asked, shapes)
    assert make is not None
    compression = make(model)
    model.register_comm_hook(None, lambda state, bucket: compression.hook(bucket))
    return compression


def check_compressor(compressor: str, *, error_feedback: Any = None, **options: Any) -> None:
    """Whether `compress` would take these, without a model or a group.

    Raises:
        InputError: it would not.
    """
    _maker(compressor, error_feedback, 0, options)


def _maker(name: str, error_feedback: bool | None, seed: int, options: dict[str, Any]) -> Make:
    """Everything that can be wrong is found here, before any worker waits for another."""
    if name in CASTS:
        _known_options(name, options, ())
        _no_feedback(name, error_feedback, "a cast loses too little for it")
        return lambda model: CastCompression(model, name)
    if name == "powersgd":
        PowerSGDCompression.check(**_known_options(name, options, ("rank", "start_step")))
        feedback = error_feedback is not False
        return lambda model: PowerSGDCompression(model, **options, error_feedback=feedback, seed=seed)
    if name not in COMPRESSORS:
        known = ", ".join(sorted([*COMPRESSORS, *CASTS, "powersgd"]))
        raise InputError(f"compress: unknown compressor {name!r}; known: {known}")
    _known_options(name, options, tuple(inspect.signature(COMPRESSORS[name]).parameters))
    try:
        inner = COMPRESSORS[name](**options)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
    if not inner.biased:
        _no_feedback(name, error_feedback, "it holds back nothing that is not accounted for")
    elif error_feedback is not False:
        inner = ErrorFeedback(inner)
    return lambda model: CodedCompression(model, inner, seed=seed)


def _known_options(name: str, options: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    for option in options:
        if option not in known:
            raise InputError(f"{name}: unknown option {option!r}; known: {', '.join(known) or 'none'}")
    return options


def _no_feedback(name: str, error_feedback: bool | None, why: str) -> None:
    if error_feedback:
        raise InputError(f"{name}: error_feedback is for biased compressors, {why}; leave it out")


def _agree(model: DistributedDataParallel, problem: str | None, asked: str, shapes: list[Any]) -> None:
    """Compare with the other workers; all raise, or none does.

    Raises:
        InputError: somebody has a problem, or asks for something else.
    """
    group: Any = model.process_group
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (problem, asked, shapes), group=group)
    for rank, (trouble, _, _) in enumerate(everyone):
        if trouble is not None:
            raise InputError(trouble if trouble == problem else f"rank {rank}: {trouble}")
    for rank, (_, other, others_shapes) in enumerate(everyone):
        if other != everyone[0][1]:
            raise InputError(f"compress: rank 0 asks for {everyone[0][1]}, rank {rank} for {other}; give all the same")
        if others_shapes != everyone[0][2]:
            raise InputError(f"compress: the parameters of rank 0 and rank {rank} differ; build the same model on both")
