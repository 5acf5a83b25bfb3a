"""Bytes and seconds of compressed gradients, measured.

    python benchmarks/gradient_compression.py [--model resnet20] [--json]            # bytes, compute
    python benchmarks/gradient_compression.py --links 100 10 [--workers 2] [--json]  # step times on slow links (root)

Bytes: two worker processes in a network namespace of their own (as root; else on the machine's loopback interface,
where others count, too), a DDP model, and the interface's own counters around the steps; `bytes_ratio` is plain DDP's
bytes for one of the compressor's, with all headers. `counted_ratio` is the same by the hook's counters,
`seconds_per_mb` the processor time of the hook for 10^6 bytes of float32 gradients, alone in a group of one.

Links: each worker in a network namespace, joined by a bridge; `tc` limits what each sends (token bucket) to so many
Mbit/s. `seconds` is the least step, `predicted` the cost model's (`haq.distributed.cost_model`) from the bytes that
were handed over and the least step without a limit. Two rows exchange one megabyte and compute nothing: the cost
model's seconds on the wire and the measured ones of four bytes, against the measured ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from haq.distributed import Link, collective_seconds, compress
from haq.zoo import MODELS

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "onebit": ("onebit", {}),
    "signsgd": ("signsgd", {}),
    "terngrad": ("terngrad", {}),
    "qsgd": ("qsgd", {}),
    "topk": ("topk", {"ratio": 0.01}),
    "randomk": ("randomk", {"ratio": 0.01}),
    "dgc": ("dgc", {"ratio": 0.01}),
    "powersgd": ("powersgd", {"rank": 1}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
}
SUMMED = ("float32", "randomk", "powersgd", "fp16", "bf16")
WARM = 3


def sent_bytes(interface: str) -> int:
    """What the interface has sent, by the kernel's counter in this process's network namespace."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == interface:
            return int(rest.split()[8])
    raise SystemExit(f"no interface {interface}")


def stepper(model_name: str, method: str) -> tuple[Callable[[], None], Any]:
    """A function that makes one forward and backward pass, and the compression."""
    torch.manual_seed(0)
    model = DistributedDataParallel(MODELS[model_name](), broadcast_buffers=False)
    compression = None
    if method != "float32":
        name, options = METHODS[method]
        compression = compress(model, name, **options)
    channels = next(p.shape[1] for p in model.parameters() if p.dim() == 4)
    inputs = torch.randn(2, channels, 28, 28, generator=torch.Generator().manual_seed(dist.get_rank()))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(inputs).square().mean().backward()

    return step, compression


def hook_seconds(compression: Any, step: Callable[[], None], repeats: int) -> float:
    """Least processor time of the hook in one step."""
    spent, inner = [0.0], compression.hook

    def timed(bucket: Any) -> Any:
        begin = time.process_time()
        result = inner(bucket)
        spent[0] += time.process_time() - begin
        return result

    compression.hook = timed
    times = []
    for _ in range(repeats):
        spent[0] = 0.0
        step()
        times.append(spent[0])
    return min(times)


def measure(rank: int, world: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes and median step seconds of each method, by a member of the group."""
    found = {}
    for method in ["float32", *arguments.methods]:
        step, compression = stepper(arguments.model, method)
        for _ in range(WARM):
            step()
        dist.barrier()
        time.sleep(0.05)
        before, counted = sent_bytes(arguments.interface), compression.message_bytes if compression else 0
        times = []
        for _ in range(arguments.repeats):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
        time.sleep(0.05)
        wire = (sent_bytes(arguments.interface) - before) / arguments.repeats
        dist.barrier()
        own = (compression.message_bytes - counted) / arguments.repeats if compression else 0.0
        found[method] = {"wire_bytes": wire, "message_bytes": own, "seconds": min(times)}
    return found


def collectives(arguments: argparse.Namespace) -> dict[str, float]:
    """Least seconds of one megabyte through each collective, and of one number: the latency of its messages."""
    found = {}
    for size, label in ((250_000, "1 MB"), (1, "4 bytes")):
        sent = torch.zeros(size)
        got = [torch.zeros(size) for _ in range(dist.get_world_size())]
        for name, call in (
            ("all-reduce", lambda sent=sent: dist.all_reduce(sent)),
            ("all-gather", lambda sent=sent, got=got: dist.all_gather(got, sent)),
        ):
            times = []
            for _ in range(arguments.repeats + 1):
                dist.barrier()
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            found[f"{name} {label}"] = min(times)
    return found


def member(rank: int, world: int, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = arguments.interface
    dist.init_process_group("gloo", init_method=f"file://{arguments.folder}/meet{world}", rank=rank, world_size=world)
    if world == 1:
        found: dict[str, Any] = {}
        for method in arguments.methods:
            step, compression = stepper(arguments.model, method)
            for _ in range(WARM):
                step()
            size = 4 * sum(p.numel() for p in MODELS[arguments.model]().parameters())
            found[method] = {"gradient_bytes": size, "hook": hook_seconds(compression, step, arguments.repeats)}
    else:
        found = measure(rank, world, arguments)
        if arguments.interface != "lo":
            found["collectives"] = collectives(arguments)
    Path(arguments.folder, f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def group(arguments: argparse.Namespace, world: int, prefixes: list[list[str]]) -> list[dict[str, Any]]:
    """Run the members, each behind a command of its own, and read what they found."""
    base = [sys.executable, __file__, "--model", arguments.model, "--repeats", str(arguments.repeats)]
    base += ["--folder", arguments.folder, "--world", str(world), "--methods", *arguments.methods]
    Path(arguments.folder, f"meet{world}").unlink(missing_ok=True)
    interface = arguments.interface if world > 1 else "lo"
    processes = [
        subprocess.Popen([*prefixes[rank], *base, "--interface", interface, "--rank", str(rank)])
        for rank in range(world)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a worker failed")
    return [json.loads(Path(arguments.folder, f"{world}-{rank}.json").read_text()) for rank in range(world)]


class Namespaces:
    """Network namespaces `haq-0`, `haq-1`, ... joined by a bridge in another; removed at the end."""

    def __init__(self, count: int) -> None:
        self.names = [f"haq-{os.getpid()}-{number}" for number in range(count)]
        self.switch = f"haq-{os.getpid()}-switch"

    def __enter__(self) -> Namespaces:
        run("ip", "netns", "add", self.switch)
        inside = ("ip", "-n", self.switch)
        run(*inside, "link", "add", "bridge", "type", "bridge")
        run(*inside, "link", "set", "bridge", "up")
        for number, name in enumerate(self.names):
            run("ip", "netns", "add", name)
            run(*inside, "link", "add", f"port{number}", "type", "veth", "peer", "name", "link0", "netns", name)
            run(*inside, "link", "set", f"port{number}", "master", "bridge", "up")
            run("ip", "-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "link0")
            run("ip", "-n", name, "link", "set", "link0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def limit(self, megabits: float) -> None:
        """What each worker sends: a token bucket of at most 5 ms of traffic, and a queue that drops nothing."""
        burst = max(16_000, int(megabits * 1e6 / 8 * 0.005))
        for name in self.names:
            rule = ("root", "tbf", "rate", f"{megabits}mbit", "burst", str(burst), "limit", "20000000")
            run("tc", "-n", name, "qdisc", "replace", "dev", "link0", *rule)

    def __exit__(self, *_: Any) -> None:
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


def privileged() -> bool:
    tools = all(map(shutil.which, ("ip", "tc", "unshare")))
    return tools and not subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode


def bytes_and_compute(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both on one loopback interface: of a namespace of its own where that is allowed."""
    if privileged():
        with Namespaces(1) as spaces:
            prefix = ["ip", "netns", "exec", spaces.names[0]]
            both = group(arguments, 2, [prefix, prefix])
    else:
        both = group(arguments, 2, [[], []])
    (alone,) = group(arguments, 1, [[]])
    found = {}
    for method in arguments.methods:
        size, wire = alone[method]["gradient_bytes"], both[0][method]["wire_bytes"]
        found[method] = {
            "bytes_ratio": both[0]["float32"]["wire_bytes"] / wire,
            "seconds_per_mb": alone[method]["hook"] / (size / 1e6),
            "counted_ratio": size / both[0][method]["message_bytes"],
            "wire_bytes_per_step": wire,
        }
    return found


def on_links(arguments: argparse.Namespace) -> dict[str, Any]:
    """Step seconds in namespaces, by link speed; `{}` where privileges are missing."""
    if not privileged():
        print("network namespaces need root, ip and tc: skipped", file=sys.stderr)
        return {}
    found: dict[str, Any] = {}
    with Namespaces(arguments.workers) as spaces:
        prefixes = [["ip", "netns", "exec", name] for name in spaces.names]
        arguments.interface = "link0"
        spaces.limit(10_000)
        fast = group(arguments, arguments.workers, prefixes)[0]
        for megabits in arguments.links:
            spaces.limit(megabits)
            slow = group(arguments, arguments.workers, prefixes)[0]
            exchanges = slow.pop("collectives")
            rows = {
                method: {
                    "seconds": row["seconds"],
                    "predicted": fast[method]["seconds"] + seconds_on(megabits, method, row, arguments),
                }
                for method, row in slow.items()
            }
            for name in ("all-reduce", "all-gather"):
                wire = collective_seconds(name, 1e6, arguments.workers, Link(1e6 * megabits, 0.0))
                predicted = wire + exchanges[f"{name} 4 bytes"]
                rows[f"{name} of 1 MB"] = {"seconds": exchanges[f"{name} 1 MB"], "predicted": predicted}
            found[f"{megabits:g} Mbit/s"] = rows
    return found


def seconds_on(megabits: float, method: str, row: dict[str, Any], arguments: argparse.Namespace) -> float:
    size = row["message_bytes"] or 4 * sum(p.numel() for p in MODELS[arguments.model]().parameters())
    collective = "all-reduce" if method in SUMMED else "all-gather"
    return collective_seconds(collective, size, arguments.workers, Link(1e6 * megabits, 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--links", type=float, nargs="+", help="Mbit/s; measures step times on such links")
    parser.add_argument("--workers", type=int, default=2, help="of --links")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--interface", default="lo", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        member(arguments.rank, arguments.world, arguments)
        return
    with tempfile.TemporaryDirectory(prefix="haq-") as folder:
        arguments.folder = folder
        found = on_links(arguments) if arguments.links else bytes_and_compute(arguments)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for name, row in found.items():
        for key, value in row.items():
            shown = value if isinstance(value, dict) else {key: value}
            print(f"{name:14s} {key:20s} " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()))


if __name__ == "__main__":
    main()
