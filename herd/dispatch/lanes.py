"""Waiting is first come, first served in one line per node and model, and a freed slot wakes the next in the same step.

The truth about who runs where is the fleet view; a lane adds only the callers that wait. So a limit cannot be exceeded
by a lost count, and a restart leaves nothing to repair.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

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
    RouteChosen,
)
from herd.core import Core
from herd.dispatch.relay import Relay
from herd.errors import QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a waiting request learns: its turn has come, or its node is gone and it must ask again.
Call = Literal["go", "ask again"]


class Waiter(msgspec.Struct, eq=False):
    """A request in a line, and the future that calls it."""

    enqueued: RequestEnqueued
    relay: Relay
    call: asyncio.Future[Call]
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
        core.watch(self._react)

    def enter(self, chosen: RouteChosen, relay: Relay, cause: str) -> Waiter | None:
        """Take a slot on the chosen node now and return None, or join the line and return the place in it.

        Raises `QueueFull` when as many requests wait as may. `cause` is the id of the decision.
        """
        node, model = chosen.node, chosen.model
        assert node is not None
        lane = self._lanes.get((node, model))
        if not lane and self._has_room(node, model):
            self._dispatch(chosen.request, chosen.attempt, node, model, relay=relay, cause=cause)
            return None
        if self.waiting >= self._waiting_max:
            raise QueueFull
        lane = self._lanes.setdefault((node, model), deque())
        enqueued = RequestEnqueued(
            request=chosen.request, attempt=chosen.attempt, node=node, model=model, ahead=len(lane)
        )
        waiter = Waiter(enqueued, relay, asyncio.get_running_loop().create_future(), cause)
        lane.append(waiter)
        self.waiting += 1
        self._core.record(enqueued, cause=cause)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Take a request out of its line because nobody wants its answer any more. Harmless if it has been called."""
        key = (waiter.enqueued.node, waiter.enqueued.model)
        lane = self._lanes.get(key)
        if lane is not None and waiter in lane:
            lane.remove(waiter)
            self.waiting -= 1
            self._drop_if_empty(key, lane)

    def _has_room(self, node_name: str, model: str) -> bool:
        node = self._core.view.fleet.nodes[node_name]
        queue = node.queues.get(model)
        return queue is None or queue.in_flight < node.slots

    def _dispatch(self, request: str, attempt: int, node: str, model: str, *, relay: Relay, cause: str) -> None:
        dispatched = RequestDispatched(
            request=request,
            attempt=attempt,
            node=node,
            model=model,
            sent_model=relay.sent_model,
            changes=relay.changes,
        )
        self._core.record(dispatched, cause=cause)

    def _react(self, recorded: Recorded) -> None:
        reaction = self._reactions.get(type(recorded.event))
        if reaction is not None:
            reaction(recorded.event)

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
            if waiter.call.done():  # its client has just left; it will take itself out of the count of open requests
                continue
            place = waiter.enqueued
            self._dispatch(place.request, place.attempt, node, model, relay=waiter.relay, cause=waiter.cause)
            waiter.call.set_result("go")
        self._drop_if_empty(key, lane)

    def _send_away(self, node: str) -> None:
        for key in [key for key in self._lanes if key[0] == node]:
            for waiter in self._lanes.pop(key):
                self.waiting -= 1
                if not waiter.call.done():
                    waiter.call.set_result("ask again")

    def _drop_if_empty(self, key: tuple[str, str], lane: deque[Waiter]) -> None:
        if not lane and self._lanes.get(key) is lane:
            del self._lanes[key]
