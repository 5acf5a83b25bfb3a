"""Seconds of one data-parallel step: who computes, what goes over the wire, how long the wire takes. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """Every worker's link to the others, full duplex.

    Attributes:
        bandwidth: bits a second, each way.
        latency: seconds until the first bit of a message is there.
    """

    bandwidth: float
    latency: float

    def seconds(self, data: float, messages: int) -> float:
        """Of `data` bytes in so many messages, one after the other."""
        return 8.0 * data / self.bandwidth + messages * self.latency


def ring_all_reduce(size: float, workers: int, link: Link) -> float:
    """2 (N - 1) messages of size / N: the busiest link carries 2 (N - 1) / N of the bytes."""
    return link.seconds(2 * (workers - 1) / workers * size, 2 * (workers - 1))


def all_gather(size: float, workers: int, link: Link) -> float:
    """N - 1 messages of the whole size: grows with the number of workers."""
    return link.seconds((workers - 1) * size, workers - 1)


def parameter_server(size: float, workers: int, link: Link) -> float:
    """The server's link carries every worker's message in, then every worker's answer of the same size out."""
    return link.seconds(2 * workers * size, 2)


COLLECTIVES: dict[str, Callable[[float, int, Link], float]] = {
    "all-reduce": ring_all_reduce,
    "all-gather": all_gather,
    "parameter server": parameter_server,
}
"""Name -> `(bytes of a worker's message, workers, link)` -> seconds."""


def collective_seconds(collective: str, size: float, workers: int, link: Link) -> float:
    """Seconds in which `workers` workers exchange messages of `size` bytes; 0 for one worker alone.

    Args:
        collective: a name in `COLLECTIVES`.
        size: bytes of each worker's message.
        workers: at least 1.
        link: of each.
    """
    return COLLECTIVES[collective](size, workers, link) if workers > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Method:
    """A compressor as the cost model sees it.

    Attributes:
        name: of the compressor.
        collective: that it needs, a name in `COLLECTIVES`.
        ratio: bytes in float32 for one byte of its messages.
        seconds_per_mb: to encode a worker's gradients, for 10^6 bytes of them in float32.
        decode_seconds_per_mb: to decode one worker's message, for 10^6 bytes of gradients in float32; an all-gather
            has one for every worker.
        rounds: collectives of its own beside the one with the message: a shared scale, lengths, a flag.
    """

    name: str
    collective: str
    ratio: float
    seconds_per_mb: float
    decode_seconds_per_mb: float = 0.0
    rounds: int = 0

    def step_seconds(self, gradient_bytes: float, workers: int, compute_seconds: float, link: Link) -> float:
        """Of one step: the computation, compressing, the exchange, decompressing; nothing overlaps.

        Args:
            gradient_bytes: of all gradients in float32.
            workers: at least 1.
            compute_seconds: of forward, backward and optimizer on one worker, for its share of the batch.
            link: of each worker.
        """
        messages = workers if self.collective == "all-gather" else 1
        coding = self.seconds_per_mb + messages * self.decode_seconds_per_mb
        exchange = collective_seconds(self.collective, gradient_bytes / self.ratio, workers, link)
        small = self.rounds * collective_seconds("all-gather", 4.0, workers, link)
        return compute_seconds + coding * gradient_bytes / 1e6 + exchange + small
