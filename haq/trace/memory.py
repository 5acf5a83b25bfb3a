"""Activation memory over a run: who shares which buffer, and what is alive while each operation runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from haq.values.network import Step


@dataclass(eq=False, slots=True)
class Storage:
    """A buffer of activations; views and in-place results share it.

    Attributes:
        producer: the layer that wrote it last, `None` for network inputs.
        elements: per sample.
        last_read: position in the graph of the last node that reads it, as known so far.
    """

    producer: str | None
    elements: int
    last_read: int


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """What a node holds.

    Attributes:
        name: of the node that computed it; kept by views and copies of the whole.
        producer: the layer that wrote it, `None` for network inputs.
        written: when: position of the producer's call, -1 for network inputs.
        elements: per sample.
        batched: whether the batch is a factor of its size.
        numeric: `False` for indices and masks, which have no activation format.
        storage: `None` for computed indices and masks, which are not counted as activations.
    """

    name: str
    producer: str | None
    written: int
    elements: int
    batched: bool
    numeric: bool
    storage: Storage | None


class Memory:
    """The buffers alive at the current node. Call it for each node in execution order."""

    def __init__(self, graph: Graph) -> None:
        self._positions = {node: position for position, node in enumerate(graph.nodes)}
        self._alive: list[Storage] = []
        self._steps: list[Step] = []

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    def position(self, node: Node) -> int:
        return self._positions[node]

    def allocate(self, node: Node, producer: str | None, elements: int, *, step: str | None) -> Storage:
        """A new buffer for the result of `node`, which runs as `step` (`None`: it is there from the beginning)."""
        storage = Storage(producer, elements, self._positions[node])
        self.share(storage, node)
        self._alive.append(storage)
        if step is not None:
            self._run(step, self._positions[node])
        return storage

    def share(self, storage: Storage, node: Node) -> None:
        """Keep `storage` for the readers of `node` too."""
        readers = (self._positions[user] for user in node.users)
        storage.last_read = max(storage.last_read, self._positions[node], *readers)

    def is_free(self, storage: Storage, node: Node) -> bool:
        """Whether nobody but `node` still reads `storage`, so that `node` may overwrite it."""
        return storage.last_read <= self._positions[node]

    def _run(self, step: str, position: int) -> None:
        # Whatever prolongs a buffer later is itself a reader, so an expired one never comes back.
        self._alive = [storage for storage in self._alive if storage.last_read >= position]
        self._steps.append(Step(step, tuple((storage.producer, storage.elements) for storage in self._alive)))
