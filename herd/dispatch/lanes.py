"""Waiting is first come, first served in one line per node and model, and a freed slot wakes the next in the same step.

The truth about who runs where is the fleet view; a lane adds only the callers that wait. So a limit cannot be exceeded
by a lost count, and a restart leaves nothing to repair.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from events.recorded import Recorded
from events.types import (
    Event,
    NodeDrainRequested,
    NodeJoined,
    NodeLeft,
    NodeStatusChanged,
    RequestAttemptFailed,
    RequestDispatched,
    RequestEnqueued,
    RequestFinished,
)
from herd.core import Core
from herd.errors import QueueFull

#: What a waiting request learns: its turn has come, or its node is gone and it must ask again.
Turn = Literal["go", "ask again"]

#: How it learns it; False when nobody waits any more.
Call = Callable[[Turn], bool]


class Waiter(msgspec.Struct, eq=False):
    """A request in a line, and how it is called."""

    dispatched: RequestDispatched
    """What its turn will be recorded as."""
    call: Call
    cause: str


class Lanes:
    """All the lines of this router. Lives on the event loop's thread; nothing here awaits."""

    def __init__(self, core: Core, *, waiting_max: int) -> None:
        self._core = core
        self._waiting_max = waiting_max
        self._lanes: dict[tuple[str, str], deque[Waiter]] = {}
        self.waiting = 0
        """Requests in all lines together."""
        self._reactions: dict[type[Event], Callable[[Any], None]] = {
            RequestFinished: self._ended,
            RequestAttemptFailed: self._ended,
            NodeJoined: self._joined,
            NodeStatusChanged: self._gone,
            NodeDrainRequested: self._gone,
            NodeLeft: self._gone,
        }
        core.watch(self._react, *self._reactions)

    def start(self, dispatched: RequestDispatched, cause: str) -> bool:
        """Take a slot now and record it, if one is free and nobody waits for it. `cause` is the id of the decision."""
        node, model = dispatched.node, dispatched.model
        if self._lanes.get((node, model)) or not self._has_room(node, model):
            return False
        self._core.record(dispatched, cause=cause)
        return True

    def wait(self, dispatched: RequestDispatched, call: Call, cause: str) -> Waiter:
        """Join the line for a slot and return the place in it; whoever is called with `go` has one, recorded.

        Raises `QueueFull` when as many requests wait as may.
        """
        if self.waiting >= self._waiting_max:
            raise QueueFull
        lane = self._lanes.setdefault((dispatched.node, dispatched.model), deque())
        place = RequestEnqueued(
            request=dispatched.request,
            attempt=dispatched.attempt,
            node=dispatched.node,
            model=dispatched.model,
            ahead=len(lane),
        )
        waiter = Waiter(dispatched, call, cause)
        lane.append(waiter)
        self.waiting += 1
        self._core.record(place, cause=cause)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Take a request out of its line because nobody wants its answer any more. Harmless if it has been called."""
        key = (waiter.dispatched.node, waiter.dispatched.model)
        lane = self._lanes.get(key)
        if lane is not None and waiter in lane:
            lane.remove(waiter)
            self.waiting -= 1
            self._drop_if_empty(key, lane)

    def _has_room(self, node_name: str, model: str) -> bool:
        node = self._core.view.fleet.nodes.get(node_name)
        if node is None:  # it left just now
            return False
        queue = node.queues.get(model)
        return queue is None or queue.in_flight < node.slots

    def _react(self, recorded: Recorded) -> None:
        self._reactions[type(recorded.event)](recorded.event)

    def _ended(self, event: RequestFinished | RequestAttemptFailed) -> None:
        if event.node is not None:
            self._call_next(event.node, event.model)

    def _joined(self, event: NodeJoined) -> None:
        # It may have come back with another address, engine or number of slots; whoever waits here asks again.
        self._send_away(event.node)

    def _gone(self, event: NodeStatusChanged | NodeDrainRequested | NodeLeft) -> None:
        if not isinstance(event, NodeStatusChanged) or event.status in ("offline", "draining"):
            self._send_away(event.node)

    def _call_next(self, node: str, model: str) -> None:
        key = (node, model)
        lane = self._lanes.get(key)
        if lane is None:
            return
        while lane and self._has_room(node, model):
            waiter = lane.popleft()
            self.waiting -= 1
            if waiter.call("go"):
                self._core.record(waiter.dispatched, cause=waiter.cause)
        self._drop_if_empty(key, lane)

    def _send_away(self, node: str) -> None:
        for key in [key for key in self._lanes if key[0] == node]:
            for waiter in self._lanes.pop(key):
                self.waiting -= 1
                waiter.call("ask again")

    def _drop_if_empty(self, key: tuple[str, str], lane: deque[Waiter]) -> None:
        if not lane and self._lanes.get(key) is lane:
            del self._lanes[key]
