"""Readings count memory in GiB, engines count models in bytes and people think in GB: only this file converts."""

from projections.fleet import Node, Size

GIB = 1024**3
GB = 10**9


def size_gb(size: Size) -> float | None:
    """Return the size that people call a model by, in GB (10^9 bytes); None = unknown."""
    known = size.weights_bytes or size.resident_bytes
    return known / GB if known else None


def need_gib(size: Size, node: Node, model: str) -> float | None:
    """Return the memory that loading a model of this size on this node takes, in GiB; None = unknown.

    A measured cost beats the weights alone, and the node's own copy beats another node's. The fleet's figures are the
    smallest: a node is refused only where the model would not even fit at its cheapest.
    """
    own = node.models.get(model)
    need = size.resident_bytes or (own.size_bytes if own is not None else 0) or size.weights_bytes
    return need / GIB if need > 0 else None


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
