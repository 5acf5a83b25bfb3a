"""Random small problem documents, and their answers by listing every policy in plain Python: no table, no numpy."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

Doc = dict[str, Any]


def random_problem(seed: int, *, layers: int = 4, choices: int = 3) -> Doc:
    """A document with a random mixture of everything a document may hold, small enough to list."""
    rng = random.Random(seed)
    names = [f"l{i}" for i in range(rng.randint(1, layers))]
    kinds = [(w, a) for w in (2, 4, 8) for a in (4, 8)]
    scale = 10.0 ** rng.randint(-6, 3)

    def choice(kind: tuple[int, int]) -> Doc:
        costs = {"latency_ms": _round(rng.random() * kind[0] * kind[1]), "size_bytes": float(kind[0] * 100)}
        loss = scale * (rng.random() + 8 / kind[0]) if rng.random() > 0.1 else 0.0
        return {"weight_bits": kind[0], "activation_bits": kind[1], "sensitivity": loss, "costs": costs}

    doc: Doc = {"schema_version": 1, "layers": []}
    for name in names:
        picked = rng.sample(kinds, rng.randint(1, choices))
        doc["layers"].append({"name": name, "choices": [choice(kind) for kind in picked]})
    count = {layer["name"]: len(layer["choices"]) for layer in doc["layers"]}
    pairs = [(a, b) for a in names for b in names if a != b]

    def matrix(a: str, b: str, low: float, high: float, shared: bool) -> list[list[float]]:
        if not shared:
            return [[_round(rng.uniform(low, high)) for _ in range(count[b])] for _ in range(count[a])]
        bits = [[c["activation_bits"] for c in layer["choices"]] for layer in doc["layers"]]
        cost = {key: _round(rng.uniform(low, high)) for key in itertools.product((4, 8), (4, 8))}
        return [[0.0 if i == j else cost[i, j] for j in bits[names.index(b)]] for i in bits[names.index(a)]]

    doc["edges"] = [
        {
            "from": a,
            "to": b,
            "metric": rng.choice(["latency_ms", "energy_mj"]),
            "costs": matrix(a, b, 0, 20, rng.random() < 0.6),
        }
        for a, b in rng.sample(pairs, rng.randint(0, min(len(pairs), 4)))
    ]
    doc["tensors"] = [_random_tensor(rng, names) for _ in range(rng.randint(0, 2))] if len(names) > 1 else []
    if rng.random() < 0.5:
        doc["interactions"] = [
            {"between": [a, b], "costs": [[scale * v / 10 for v in row] for row in matrix(a, b, -8, 8, False)]}
            for a, b in rng.sample(pairs, rng.randint(0, min(len(pairs), 3)))
        ]
    if rng.random() < 0.4 and len(names) > 1:
        a, b = rng.sample(names, 2)
        doc["layers"][names.index(b)]["choices"] = [choice(k) for k in rng.sample(kinds, count[a])]
        if count[a] == count[b]:
            doc["ties"] = [[a, b]]
        else:
            doc["edges"] = [e for e in doc["edges"] if b not in (e["from"], e["to"])]
            doc["interactions"] = [e for e in doc.get("interactions", []) if b not in e["between"]]
            doc["ties"] = [[a, b]]
        count[b] = count[a]
    if rng.random() < 0.4 and len(names) > 1:
        doc["activation_ties"] = [rng.sample(names, rng.randint(2, len(names)))]
    if rng.random() < 0.4:
        doc["peak"] = [
            {
                "step": f"s{i}",
                "fixed": float(rng.randint(0, 50)),
                "live": {
                    n: [float(rng.randint(1, 100)) for _ in range(count[n])]
                    for n in rng.sample(names, rng.randint(0, len(names)))
                },
            }
            for i in range(rng.randint(1, 3))
        ]
    if rng.random() < 0.3:
        doc["offsets"] = {"latency_ms": 1.5}
    _add_budgets(rng, doc)
    return doc


def _round(value: float) -> float:
    return round(value, 2)


def _random_tensor(rng: random.Random, names: list[str]) -> Doc:
    source = rng.choice([None, *names])
    targets = rng.sample(names, rng.randint(1, min(3, len(names))))
    rows = 1 if source is None else 2
    costs = [
        [0.0 if i == j and rng.random() < 0.7 else _round(rng.uniform(0, 20)) for j in range(2)] for i in range(rows)
    ]
    return {"from": source, "to": targets, "metric": "latency_ms", "activation_bits": [4, 8], "costs": costs}


def _add_budgets(rng: random.Random, doc: Doc) -> None:
    """Bounds taken from some policy's own costs, so that sums meet them exactly; now and then out of reach."""
    doc["budgets"], doc["objective"] = {}, "sensitivity"
    policies = assignments(doc)
    if not policies:
        return
    priced = [price(doc, policy) for policy in policies]
    metrics = list(priced[0])
    doc["objective"] = rng.choice([*metrics, "sensitivity", "sensitivity", "sensitivity"])
    for metric in rng.sample(metrics, rng.randint(0, min(3, len(metrics)))):
        low, high = min(p[metric] for p in priced), max(p[metric] for p in priced)
        bound = rng.choice(priced)[metric] if rng.random() < 0.6 else low + (high - low) * rng.uniform(-0.05, 1.0)
        if bound > 0:
            doc["budgets"][metric] = bound


def assignments(doc: Doc) -> list[dict[str, int]]:
    """Every choice of indices that respects the ties."""
    names = [layer["name"] for layer in doc["layers"]]
    bits = {layer["name"]: [c["activation_bits"] for c in layer["choices"]] for layer in doc["layers"]}
    result = []
    for indices in itertools.product(*(range(len(layer["choices"])) for layer in doc["layers"])):
        policy = dict(zip(names, indices, strict=True))
        same = all(len({policy[n] for n in tie}) <= 1 for tie in doc.get("ties", []))
        shared = all(len({bits[n][policy[n]] for n in tie}) <= 1 for tie in doc.get("activation_ties", []))
        if same and shared:
            result.append(policy)
    return result


def price(doc: Doc, policy: dict[str, int]) -> dict[str, float]:
    """Every metric of one policy, straight from the document."""
    chosen = {layer["name"]: layer["choices"][policy[layer["name"]]] for layer in doc["layers"]}
    metrics = [
        *doc["layers"][0]["choices"][0]["costs"],
        *(e["metric"] for e in [*doc.get("edges", []), *doc.get("tensors", [])]),
    ]
    parts: dict[str, list[float]] = {metric: [doc.get("offsets", {}).get(metric, 0.0)] for metric in metrics}
    parts["sensitivity"] = [c["sensitivity"] for c in chosen.values()]
    for c in chosen.values():
        for metric, value in c["costs"].items():
            parts[metric].append(value)
    for edge in doc.get("edges", []):
        parts[edge["metric"]].append(edge["costs"][policy[edge["from"]]][policy[edge["to"]]])
    for pair in doc.get("interactions", []):
        parts["sensitivity"].append(pair["costs"][policy[pair["between"][0]]][policy[pair["between"][1]]])
    for tensor in doc.get("tensors", []):
        order = tensor["activation_bits"]
        row = 0 if tensor["from"] is None else order.index(chosen[tensor["from"]]["activation_bits"])
        for bits in {chosen[name]["activation_bits"] for name in tensor["to"]}:
            parts[tensor["metric"]].append(tensor["costs"][row][order.index(bits)])
    result = {metric: math.fsum(values) for metric, values in parts.items()}
    if doc.get("peak"):
        result["peak_activation_bytes"] = max(
            step["fixed"] + sum(values[policy[name]] for name, values in step["live"].items()) for step in doc["peak"]
        )
    return result


def optima(doc: Doc, count: int = 1) -> list[float]:
    """The `count` least objectives within budget, in order; fewer if there are fewer."""
    priced = [price(doc, policy) for policy in assignments(doc)]
    fitting = [p for p in priced if all(p[m] <= b + 1e-9 * abs(b) for m, b in doc["budgets"].items())]
    return sorted(p[doc["objective"]] for p in fitting)[:count]
