"""Watches a log from outside: a naive model of its own, which shares no line with the folds or the router."""

from collections import Counter, defaultdict

import msgspec

from events.recorded import Recorded
from events.types import (
    NodeDrainRequested,
    NodeEvent,
    NodeInventoryChanged,
    NodeJoined,
    NodeLeft,
    NodeResidencyChanged,
    NodeStatusChanged,
    RequestAttemptFailed,
    RequestDispatched,
    RequestEnqueued,
    RequestEvent,
    RequestFinished,
    RequestFirstToken,
    RequestReceived,
    RouteChosen,
)
from herd.replay.world import Rules
from projections.fleet import canonical


class Seen(msgspec.Struct):
    """What the auditor remembers of a request that has not ended."""

    chosen: RouteChosen | None = None
    place: tuple[str, str] | None = None
    running: bool = False
    answering: bool = False
    failed_on: tuple[str, ...] = ()


class Auditor:
    """Collects everything in a log that must never happen, in words."""

    def __init__(self, rules: Rules) -> None:
        self.complaints: list[str] = []
        self.dispatched: Counter[str] = Counter()
        self._rules = rules
        self._seq = self._at = 0
        self._open: dict[str, Seen] = {}
        self._ended: set[str] = set()
        self._slots: dict[str, int] = {}
        self._status: dict[str, str] = {}
        self._disk: dict[str, set[str]] = defaultdict(set)
        self._memory: dict[str, set[str]] = defaultdict(set)
        self._lines: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._running: Counter[tuple[str, str]] = Counter()

    def read(self, log: list[Recorded]) -> list[str]:
        """Go through a whole log; return the complaints."""
        for recorded in log:
            self._expect(recorded.seq == self._seq + 1, f"position {recorded.seq} follows {self._seq}")
            self._expect(recorded.at >= self._at, f"time ran backwards at {recorded.seq}")
            self._seq, self._at = recorded.seq, recorded.at
            self._hear(recorded)
        self._expect(not self._open, f"never ended: {sorted(self._open)}")
        self._expect(not any(self._lines.values()), "somebody still waits")
        self._expect(not any(self._running.values()), "somebody still runs")
        return self.complaints

    def _expect(self, good: bool, complaint: str) -> None:
        if not good:
            self.complaints.append(f"at {self._seq}: {complaint}")

    def _hear(self, recorded: Recorded) -> None:
        if isinstance(recorded.event, NodeEvent):
            self._hear_node(recorded.event)
        elif isinstance(recorded.event, RequestEvent):
            self._hear_request(recorded.event)

    def _hear_node(self, event: NodeEvent) -> None:
        match event:
            case NodeJoined():
                self._slots[event.node] = event.parallel or 1
                self._status.setdefault(event.node, "offline")
            case NodeStatusChanged():
                self._status[event.node] = event.status
            case NodeDrainRequested():
                self._status[event.node] = "draining"
            case NodeLeft():
                self._status[event.node] = "offline"
            case NodeInventoryChanged():
                self._disk[event.node] = {canonical(model.name) for model in event.models}
            case NodeResidencyChanged():
                self._memory[event.node] = {canonical(model.name) for model in event.loaded}
            case _:
                pass

    def _hear_request(self, event: RequestEvent) -> None:
        match event:
            case RequestReceived():
                self._expect(event.request not in self._open, f"{event.request} came twice")
                self._expect(event.request not in self._ended, f"{event.request} came again after its end")
                self._open[event.request] = Seen()
            case RequestFinished():
                self._expect(event.request in self._open, f"{event.request} ended twice, or never came")
                seen = self._open.pop(event.request, Seen())
                self._ended.add(event.request)
                self._vacate(event.request, seen)
            case RouteChosen() | RequestEnqueued() | RequestDispatched() | RequestFirstToken() | RequestAttemptFailed():
                seen = self._open.get(event.request)
                if seen is None:
                    self._expect(False, f"{event.request} is not open")
                else:
                    self._step(event, seen)
            case _:
                pass

    def _step(
        self,
        event: RouteChosen | RequestEnqueued | RequestDispatched | RequestFirstToken | RequestAttemptFailed,
        seen: Seen,
    ) -> None:
        match event:
            case RouteChosen():
                self._choose(event, seen)
            case RequestEnqueued():
                self._enqueue(event, seen)
            case RequestDispatched():
                self._dispatch(event, seen)
            case RequestFirstToken():
                self._expect(seen.running and not seen.answering, f"{event.request} answered out of turn")
                seen.answering = True
            case RequestAttemptFailed():
                self._expect(seen.running, f"{event.request} failed where it did not run")
                self._expect(not seen.answering, f"{event.request} was retried after its first byte")
                self._vacate(event.request, seen)
                seen.failed_on = (*seen.failed_on, event.node)

    def _choose(self, chosen: RouteChosen, seen: Seen) -> None:
        name = chosen.request
        could = {candidate.node: candidate for candidate in chosen.candidates}
        refused = {eliminated.node for eliminated in chosen.eliminated}
        self._expect(could.keys() | refused == self._status.keys(), f"{name}: the decision forgot a node")
        self._expect(not could.keys() & refused, f"{name}: a node is both candidate and refused")
        self._expect(set(chosen.excluded) == set(seen.failed_on), f"{name}: excluded {chosen.excluded}")
        self._expect(chosen.attempt == len(seen.failed_on) + 1, f"{name}: attempt {chosen.attempt} is miscounted")
        self._expect(chosen.attempt <= self._rules.retries_max + 1, f"{name}: attempt {chosen.attempt}")
        self._expect(not seen.running, f"{name} was routed while it ran")
        for node, candidate in could.items():
            self._expect(self._status[node] in ("online", "degraded"), f"{name}: candidate {node} is not there")
            has = chosen.model in self._disk[node] | self._memory[node]
            self._expect(has, f"{name}: candidate {node} does not have {chosen.model}")
            self._expect(node not in seen.failed_on, f"{name}: candidate {node} failed before")
            self._expect(abs(sum(candidate.points) - candidate.total) < 1e-6, f"{name}: {node} is mis-added")
        if could:
            best = max(candidate.total for candidate in could.values())
            self._expect(chosen.node in could, f"{name} went to a node that admission refused")
            self._expect(abs(chosen.score - best) < 1e-6, f"{name} did not go to the best node")
        else:
            self._expect(chosen.node is None, f"{name} went to a node that admission refused")
        seen.chosen = chosen

    def _enqueue(self, event: RequestEnqueued, seen: Seen) -> None:
        place = (event.node, event.model)
        self._check_place(event, seen)
        self._vacate(event.request, seen)  # a request whose node went away joins another line
        line = self._lines[place]
        self._expect(event.ahead == len(line), f"{event.request}: {len(line)} wait before it, not {event.ahead}")
        full = self._running[place] >= self._slots[event.node]
        self._expect(full or bool(line), f"{event.request} waits for a free slot")
        line.append(event.request)
        seen.place = place
        waiting = sum(len(each) for each in self._lines.values())
        self._expect(waiting <= self._rules.waiting_max, f"{waiting} requests wait")

    def _dispatch(self, event: RequestDispatched, seen: Seen) -> None:
        place = (event.node, event.model)
        self._check_place(event, seen)
        if seen.place == place:
            self._expect(self._lines[place][:1] == [event.request], f"{event.request} jumped the line")
        else:
            self._expect(not self._lines[place], f"{event.request} passed a line")
        self._vacate(event.request, seen)
        self._running[place] += 1
        self.dispatched[event.node] += 1
        seen.place, seen.running = place, True
        limit = self._slots[event.node]
        self._expect(self._running[place] <= limit, f"{self._running[place]} run on {place}, which has {limit} slots")

    def _check_place(self, event: RequestEnqueued | RequestDispatched, seen: Seen) -> None:
        right = seen.chosen is not None and seen.chosen.node == event.node and seen.chosen.attempt == event.attempt
        self._expect(right, f"{event.request} went where it was not routed")
        self._expect(not seen.running, f"{event.request} is in two places")

    def _vacate(self, request: str, seen: Seen) -> None:
        if seen.place is not None:
            if seen.running:
                self._running[seen.place] -= 1
            else:
                self._lines[seen.place].remove(request)
        seen.place, seen.running, seen.answering = None, False, False
