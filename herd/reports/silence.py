"""A node that no longer reports looks idle, and would attract traffic that it cannot serve."""

from events.types import NodeLeft, NodeStatus, NodeStatusChanged
from herd.reports.news import drained_by_operator
from projections.fleet import Fleet, Node

NS_PER_S = 1_000_000_000


def silent(
    fleet: Fleet, *, now: int, timeout_s: float, offline_s: float, listening_since: int = 0
) -> list[NodeStatusChanged]:
    """Return the nodes that have been silent for too long, with what they now are.

    `listening_since` (nanoseconds since the epoch) is when this router began to hear: before, it was
    the router that was away.
    """
    found: list[NodeStatusChanged] = []
    for node in fleet.nodes.values():
        if node.status == "offline":
            continue
        silence_ns = now - max(_heard_at(node), listening_since)
        status = _silent_status(node.status, silence_ns / NS_PER_S, timeout_s=timeout_s, offline_s=offline_s)
        if status != node.status:
            silence_ms = silence_ns // 1_000_000
            found.append(
                NodeStatusChanged(node=node.name, status=status, was=node.status, why="silent", silent_ms=silence_ms)
            )
    return found


def forgotten(fleet: Fleet, *, now: int, forget_s: float) -> list[NodeLeft]:
    """Return the farewells of offline nodes that will hardly come back; one that does introduces itself anew.

    Kept are those on which a request still counts, and those that an operator has drained: they stay drained.
    """
    return [
        NodeLeft(node=node.name, why=f"silent for {_in_words(forget_s)}")
        for node in fleet.nodes.values()
        if node.status == "offline"
        and now - _heard_at(node) > forget_s * NS_PER_S
        and not node.depth
        and not drained_by_operator(node)
    ]


def _heard_at(node: Node) -> int:
    return node.reading.at or node.joined_at


def _silent_status(status: NodeStatus, silence_s: float, *, timeout_s: float, offline_s: float) -> NodeStatus:
    if silence_s > offline_s:
        return "offline"
    # A draining node gets no work anyway, and should not look as if it could have some again.
    return "degraded" if status == "online" and silence_s > timeout_s else status


def _in_words(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
