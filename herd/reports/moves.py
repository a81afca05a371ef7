"""Whoever reports under a node's name is that node; two machines that do so look like one that moves back and forth."""

from urllib.parse import urlsplit

from events.types import NodeJoined
from projections.fleet import Node

#: A machine that changes its address is silent for a while; two machines of one name are not.
MOVE_MIN_NS = 10 * 1_000_000_000

#: How many moves are remembered. Names come from the network, and what comes from there must not fill the memory.
MOVES_MAX = 1000


class Moves:
    """Tells two machines that report as one from a machine that moved: their address goes back and forth."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def back_at_once(self, joined: NodeJoined, node: Node, *, now: int) -> tuple[str, str] | None:
        """Return the two hosts, sorted, if a node is back on the one that it left a moment ago.

        `node` is what the view knew before it joined; `now` is in nanoseconds since the epoch.
        """
        here, there = urlsplit(joined.url).hostname or "", urlsplit(node.url).hostname or ""
        if here == there:
            return None
        before = self._before.pop(node.name, None)
        if node.status != "online" or now - node.reading.at >= MOVE_MIN_NS:
            return None
        if len(self._before) >= MOVES_MAX:
            self._before.clear()
        self._before[node.name] = there
        return (min(here, there), max(here, there)) if here == before else None
