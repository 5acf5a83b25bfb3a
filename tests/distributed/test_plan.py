"""The cost model of a step against a simulation of single messages, and the plan made from it."""

from __future__ import annotations

import json

import pytest

from haq.distributed import Link, collective_seconds
from haq.distributed.cost_model import Method
from haq.distributed.plan import Plan, load_methods, plans, recommended
from haq.values.errors import InputError

LINKS = [Link(1e9, 1e-4), Link(1e7, 5e-3)]


def _simulated(workers: int, rounds: int, size: float, link: Link) -> float:
    """Each worker passes on to its neighbour what came in the round before; its link sends one message at a time."""
    arrived = [0.0] * workers
    free = [0.0] * workers
    for _ in range(rounds):
        sent = []
        for worker in range(workers):
            begin = max(free[worker], arrived[worker])
            free[worker] = begin + 8 * size / link.bandwidth
            sent.append(free[worker] + link.latency)
        arrived = [sent[worker - 1] for worker in range(workers)]
    return max(arrived)


@pytest.mark.parametrize("link", LINKS, ids=["fast", "slow"])
@pytest.mark.parametrize("workers", [2, 3, 8, 64, 1024])
def test_rings_take_as_long_as_their_messages_one_by_one(workers: int, link: Link) -> None:
    size = 1e6
    reduced = _simulated(workers, 2 * (workers - 1), size / workers, link)
    gathered = _simulated(workers, workers - 1, size, link)
    assert collective_seconds("all-reduce", size, workers, link) == pytest.approx(reduced)
    assert collective_seconds("all-gather", size, workers, link) == pytest.approx(gathered)


def test_a_server_takes_in_and_answers_everybody_over_one_link() -> None:
    link = Link(8e6, 0.01)
    assert collective_seconds("parameter server", 1e6, 4, link) == pytest.approx(4 * 1.0 + 0.01 + 4 * 1.0 + 0.01)
    assert collective_seconds("parameter server", 1e6, 1, link) == 0.0


def test_gathered_codes_lose_to_summed_ones_at_scale() -> None:
    methods = [Method("none", "all-reduce", 1.0, 0.0), Method("topk", "all-gather", 50.0, 0.0)]
    for workers, winner in ((8, "topk"), (1024, "none")):
        found = plans(methods, parameters=10**7, compute_seconds=1.0, link=Link(1e9, 0.0), workers=[workers])
        assert min((p for p in found if p.exchange != "parameter server"), key=lambda p: p.seconds).compressor == winner


def test_on_a_fast_link_nothing_is_compressed_and_on_a_slow_one_much() -> None:
    fast, slow = (
        recommended(plans(load_methods(), parameters=270_000, compute_seconds=1.0, link=link, workers=[2]))
        for link in (Link(1e11, 0.0), Link(1e6, 0.0))
    )
    assert fast.compressor in ("none", "fp16", "bf16")
    assert slow.compressor not in ("none", "fp16", "bf16")


def test_fewer_workers_are_taken_where_more_gain_nothing() -> None:
    found = [Plan("a", 64, "all-reduce", 1.0), Plan("a", 8, "all-reduce", 1.04), Plan("a", 4, "all-reduce", 1.2)]
    assert recommended(found).workers == 8


def test_costs_of_another_machine_are_read_and_others_refused(tmp_path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"topk": {"bytes_ratio": 50, "seconds_per_mb": 0.01}}))
    assert [(m.name, m.ratio) for m in load_methods(path)] == [("none", 1.0), ("topk", 50.0)]
    path.write_text(json.dumps({"topk": {"bytes_ratio": 0, "seconds_per_mb": 0.01}}))
    with pytest.raises(InputError, match=r"costs\.json.*gradient_compression\.py --json"):
        load_methods(path)
