"""`haq plan-training`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from haq.commands.options import AsJson
from haq.commands.terminal import new_table, number_text, print_json, print_out
from haq.values.errors import InputError


def plan_training(
    parameters: Annotated[int, typer.Option(min=1, help="Of the model.")],
    compute_seconds: Annotated[float, typer.Option(help="Of one step on one worker alone, for the whole batch.")],
    bandwidth: Annotated[float, typer.Option(help="Of each worker's link, in bits a second, e.g. 1e9.")],
    latency: Annotated[float, typer.Option(help="Of the link, in seconds.")] = 1e-4,
    max_workers: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1024,
    costs: Annotated[
        Path | None, typer.Option(help="What benchmarks/gradient_compression.py --json printed on your machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many workers to train with and how to compress their gradients, by the cost model."""
    from haq.distributed.cost_model import Link
    from haq.distributed.plan import WORKERS, load_methods, plans, recommended

    for name, value, least in (("compute-seconds", compute_seconds, 0), ("bandwidth", bandwidth, 0)):
        if not (math.isfinite(value) and value > least):
            raise InputError(f"--{name}: must be a number above 0 (got {value})")
    if not (math.isfinite(latency) and latency >= 0):
        raise InputError(f"--latency: must be a number of at least 0 (got {latency})")
    workers = [count for count in WORKERS if count <= max_workers]
    link = Link(bandwidth, latency)
    found = plans(
        load_methods(costs), parameters=parameters, compute_seconds=compute_seconds, link=link, workers=workers
    )
    best, per_count = (
        recommended(found),
        [min((p for p in found if p.workers == n), key=lambda p: p.seconds) for n in workers],
    )
    if as_json:
        print_json({"recommended": asdict(best), "by_workers": [asdict(plan) for plan in per_count]})
        return
    plain = {plan.workers: plan.seconds for plan in found if plan.compressor == "none"}
    table = new_table("workers", "compressor", "exchange", "seconds", "uncompressed")
    for plan in per_count:
        cells = (number_text(plan.seconds), number_text(plain[plan.workers]))
        table.add_row(str(plan.workers), plan.compressor, plan.exchange, *cells)
    print_out(table)
    print_out(f"take {best.workers} workers and {best.compressor} ({best.exchange}): {best.seconds:.4g} s a step")
