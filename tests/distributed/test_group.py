"""Real groups of processes over the loopback address. One of two ranks serves most checks: a start takes seconds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from group import run_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from haq.distributed import COMPRESSORS, GradientError, Place, compress
from haq.values.errors import InputError

EVERY: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("none", "fp16", "bf16", "powersgd", "onebit", "signsgd", "terngrad", "topk", "randomk")},
    "qsgd": {"levels": 3, "coding": "elias"},
    "dgc": {"ratio": 0.05},
    "randomk_unbiased": {"ratio": 0.5},
}


class _Odd(nn.Module):
    """Sizes that no byte divides, a parameter without values and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 5, 3), nn.Linear(5, 3)
        self.nothing, self.idle = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(11))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs).relu().mean((2, 3))
        return self.second(hidden) + self.nothing.sum()


def _model(*, empty: bool = True) -> DistributedDataParallel:
    torch.manual_seed(0)
    module = _Odd()
    module.nothing.requires_grad_(empty)
    return DistributedDataParallel(module, find_unused_parameters=True)


def _inputs(rank: int, step: int) -> torch.Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(100 * step + rank))


def _gradients(model: DistributedDataParallel, rank: int, step: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(_inputs(rank, step)).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def _local(rank: int, step: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = _Odd()
    module(_inputs(rank, step)).square().sum().backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def _refusal(model: Any, *args: Any, **options: Any) -> str:
    try:
        compress(model, *args, **options)
    except InputError as error:
        return str(error)
    return "accepted"


def _checks(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options in EVERY.items():
        model = _model(empty=name != "powersgd")
        compression = compress(model, name, **options)
        steps = [_gradients(model, rank, step) for step in range(3)]
        found[name] = steps, compression.steps, compression.gradient_bytes, compression.message_bytes
        if name not in ("fp16", "bf16"):
            found[f"{name} not finite"] = _not_finite(model, rank)
    found["resumed"] = _resumed(rank)
    found["other name"] = _refusal(_model(), "topk" if rank else "onebit")
    found["other option"] = _refusal(_model(), "topk", ratio=0.1 if rank else 0.2)
    found["bad option"] = _refusal(_model(), "topk", ratio=7 if rank else 0.2)
    found["unknown"] = _refusal(_model(), "topkk")
    found["unbiased"] = _refusal(_model(), "qsgd", error_feedback=True)
    found["unknown option"] = _refusal(_model(), "onebit", levels=3)
    found["no values"] = _refusal(_model(), "powersgd")
    found["still works"] = _gradients(_model(), rank, 0)
    return found


def _not_finite(model: DistributedDataParallel, rank: int) -> str:
    model.zero_grad()
    inputs = _inputs(rank, 0)
    if rank == 1:
        inputs[0, 0, 0, 0] = float("inf")
    try:
        model(inputs).square().sum().backward()
    except GradientError as error:
        return str(error)
    return "no error"


def _resumed(rank: int) -> bool:
    """Two steps, a checkpoint, two more in a new model: as four steps of one."""
    whole, first, second = _model(), _model(), _model()
    undisturbed = compress(whole, "topk", ratio=0.1)
    expected = [_gradients(whole, rank, step) for step in range(4)]
    before = compress(first, "topk", ratio=0.1)
    for step in range(2):
        _gradients(first, rank, step)
    after = compress(second, "topk", ratio=0.1)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    found = [_gradients(second, rank, step) for step in (2, 3)]
    same = all(torch.equal(a[n], b[n]) for a, b in zip(found, expected[2:], strict=True) for n in a)
    return same and after.steps == undisturbed.steps == 4


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_group(_checks, 2, tmp_path_factory.mktemp("group"))


def _mean(step: int) -> dict[str, torch.Tensor]:
    locals_ = [_local(rank, step) for rank in range(2)]
    return {name: sum(one[name] for one in locals_) / 2 for name in locals_[0]}


@pytest.mark.parametrize("name", EVERY)
def test_all_workers_end_with_the_same_gradient(two_ranks: list[dict[str, Any]], name: str) -> None:
    steps, others = two_ranks[0][name][0], two_ranks[1][name][0]
    for mine, other in zip(steps, others, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize(("name", "tolerance"), [("none", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2), ("powersgd", 1e-6)])
def test_torchs_own_hooks_give_the_mean(two_ranks: list[dict[str, Any]], name: str, tolerance: float) -> None:
    expected = _mean(0)
    for key, value in two_ranks[0][name][0][0].items():
        wanted = expected.get(key, torch.zeros(11))
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["onebit", "topk"])
def test_the_first_step_is_the_mean_of_what_each_worker_would_send(two_ranks: list[dict[str, Any]], name: str) -> None:
    compressor = COMPRESSORS[name]()
    for key, found in two_ranks[0][name][0][0].items():
        gradients = [_local(rank, 0)[key] if key != "idle" else torch.zeros(11) for rank in range(2)]
        place = Place(key, tuple(found.shape))
        sent = [compressor.decode(compressor.encode(g.flatten(), place), place) for g in gradients if g.numel()]
        if sent:
            torch.testing.assert_close(found.flatten(), sum(sent) / 2)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("fp16", "bf16")])
def test_a_gradient_that_is_not_finite_stops_every_worker(two_ranks: list[dict[str, Any]], name: str) -> None:
    for rank in range(2):
        assert "is NaN or infinite in step 4; lower the learning rate" in two_ranks[rank][f"{name} not finite"]


def test_counters_say_what_was_handed_over(two_ranks: list[dict[str, Any]]) -> None:
    values = sum(p.numel() for p in _Odd().parameters())
    for name in EVERY:
        _, steps, gradient_bytes, message_bytes = two_ranks[0][name]
        assert (steps, gradient_bytes) == (3, 3 * 4 * values)
        assert message_bytes > 0
    assert two_ranks[0]["fp16"][3] == 3 * (2 * values + 4)


def test_a_resumed_run_equals_the_undisturbed_one(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["resumed"]
    assert two_ranks[1]["resumed"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("other name", "give all the same"),
        ("other option", "give all the same"),
        ("bad option", "ratio must be above 0 and at most 1"),
        ("no values", "parameter 'nothing' has no values, which torch's hook cannot send"),
        ("unknown", "unknown compressor 'topkk'; known: bf16"),
        ("unbiased", "qsgd: error_feedback is for biased compressors"),
        ("unknown option", "onebit: unknown option 'levels'; known: reconstruction"),
    ],
)
def test_what_cannot_work_is_refused_on_every_rank(two_ranks: list[dict[str, Any]], case: str, words: str) -> None:
    for rank in range(2):
        assert words in two_ranks[rank][case]
    for key, value in _mean(0).items():
        torch.testing.assert_close(two_ranks[0]["still works"][key], value)


def test_a_model_that_is_not_ddp_is_refused() -> None:
    with pytest.raises(InputError, match="must be a DistributedDataParallel model"):
        compress(nn.Linear(1, 1), "topk")  # type: ignore[arg-type]


def _alone(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for name in ("none", "topk", "signsgd"):
        model = _model()
        compress(model, name)
        found[name] = _gradients(model, rank, 0)
    return found


@pytest.mark.slow
def test_one_worker_alone_gets_its_own_gradient_through_the_compressor(tmp_path: Any) -> None:
    (found,), expected = run_group(_alone, 1, tmp_path), _local(0, 0)
    for key, value in expected.items():
        torch.testing.assert_close(found["none"][key], value)
        if value.numel():
            for name in ("topk", "signsgd"):
                place, compressor = Place(key, tuple(value.shape)), COMPRESSORS[name]()
                sent = compressor.decode(compressor.encode(value.flatten(), place), place)
                torch.testing.assert_close(found[name][key].flatten(), sent)
