from __future__ import annotations

import itertools

import numpy as np
import pytest

from haq.solve.elimination import Elimination

CHAIN = [(i, i + 1) for i in range(5)]
CYCLE = [*CHAIN, (0, 5)]
STAR = [(0, i) for i in range(1, 6)]
LADDER = [(0, 1), (2, 3), (4, 5), (0, 2), (2, 4), (1, 3), (3, 5)]
COMPLETE = list(itertools.combinations(range(6), 2))
GRAPHS = {"chain": CHAIN, "cycle": CYCLE, "star": STAR, "ladder": LADDER, "empty": [], "complete": COMPLETE}


def costs(edges: list[tuple[int, int]], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    unary = rng.normal(size=(6, 3))
    unary[2, 1] = np.inf
    return unary, rng.normal(size=(len(edges), 3, 3))


def marginals(unary: np.ndarray, edges: list[tuple[int, int]], tables: np.ndarray) -> np.ndarray:
    """The least total with each node in each state, by listing."""
    result = np.full((6, 3), np.inf)
    for states in itertools.product(range(3), repeat=6):
        total = sum(unary[node, state] for node, state in enumerate(states))
        total += sum(table[states[u], states[v]] for (u, v), table in zip(edges, tables, strict=True))
        for node, state in enumerate(states):
            result[node, state] = min(result[node, state], total)
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["chain", "cycle", "star", "ladder", "empty"])
def test_treewidth_two_is_exact(name: str, seed: int) -> None:
    edges = GRAPHS[name]
    unary, tables = costs(edges, seed)
    order = Elimination(6, edges)
    assert order.exact
    solved = order.minimise(unary, tables)
    expected = marginals(unary, edges, tables)
    assert solved.total == pytest.approx(expected.min())
    assert solved.marginals() == pytest.approx(expected)
    assert [row.argmin() for row in expected] == list(solved.labels())


@pytest.mark.parametrize("seed", range(5))
def test_beyond_treewidth_two_it_bounds(seed: int) -> None:
    unary, tables = costs(COMPLETE, seed)
    order = Elimination(6, COMPLETE)
    assert not order.exact
    solved, expected = order.minimise(unary, tables), marginals(unary, COMPLETE, tables)
    assert solved.total <= expected.min() + 1e-9
    assert (solved.marginals() <= expected + 1e-9).all()


def test_hard_edges_are_never_relaxed() -> None:
    hard = frozenset(COMPLETE.index((0, i)) for i in range(1, 6))
    order = Elimination(6, COMPLETE, hard=hard)
    assert not hard & set(order.relaxed.tolist())


def test_a_chain_takes_logarithmically_many_rounds() -> None:
    edges = [(i, i + 1) for i in range(1023)]
    assert len(Elimination(1024, edges).rounds) <= 20
