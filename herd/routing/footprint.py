"""Readings count memory in GiB, engines count models in bytes and people think in GB: only this file converts."""

from collections.abc import Iterable

import msgspec

from projections.fleet import Node

GIB = 1024**3
GB = 10**9


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What the fleet knows of the size of one model. Zero means that nobody has reported it."""

    resident_bytes: int = 0
    """The smallest that it was seen to occupy in memory, anywhere: weights plus KV cache."""
    weights_bytes: int = 0
    """The smallest copy on a disk."""

    @property
    def size_gb(self) -> float | None:
        """The size that people call the model by, in GB (10^9 bytes); None = unknown."""
        size = self.weights_bytes or self.resident_bytes
        return size / GB if size else None

    def need_gib(self, node: Node, model: str) -> float | None:
        """Return the memory that loading the model on this node takes, in GiB; None = unknown.

        A measured cost beats the weights alone, and the node's own copy beats another node's.
        """
        own = node.models.get(model)
        size = self.resident_bytes or (own.size_bytes if own is not None else 0) or self.weights_bytes
        return size / GIB if size > 0 else None


def footprint(nodes: Iterable[Node], model: str) -> Footprint:
    """Gather what all nodes report about a model (canonical name).

    The smallest figure counts: a node is refused only where the model would not even fit at its cheapest.
    """
    resident = weights = 0
    for node in nodes:
        loaded = node.loaded.get(model)
        if loaded is not None and loaded.size_bytes > 0 and not 0 < resident <= loaded.size_bytes:
            resident = loaded.size_bytes
        on_disk = node.models.get(model)
        if on_disk is not None and on_disk.size_bytes > 0 and not 0 < weights <= on_disk.size_bytes:
            weights = on_disk.size_bytes
    return Footprint(resident_bytes=resident, weights_bytes=weights)


def available_gib(node: Node, *, evictable_gib: float = 0.0) -> float | None:
    """Return the memory that a new model may take here, within what the machine's owner allows; None = unknown."""
    memory = node.reading.memory
    if memory is None:
        return None
    available = memory.available_gib + evictable_gib
    capacity = node.reading.capacity
    if capacity is not None and capacity.ceiling_gib > 0:
        return min(available, capacity.ceiling_gib)
    return available
