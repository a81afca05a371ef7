"""Histories in tests read as sentences: given these events, when those happen, then that is known."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from events.recorded import Recorded
from events.types import (
    Event,
    Model,
    NodeInventoryChanged,
    NodeJoined,
    NodeResidencyChanged,
    NodeStatusChanged,
    Outcome,
    RequestAttemptFailed,
    RequestDispatched,
    RequestEnqueued,
    RequestFinished,
    RequestFirstToken,
    RequestReceived,
    Resident,
    RouteChosen,
)
from projections.fleet import Fleet
from projections.latency import Latency
from projections.traces import Trace, Traces, fold
from projections.view import VIEW, View

#: Midnight at the beginning of 2026, UTC.
START = 1_767_225_600_000_000_000
LLAMA = "llama3:latest"


class Later(msgspec.Struct, frozen=True):
    """Time that passes between two events."""

    ns: int


Step = Event | Later | Iterable["Step"]


class History:
    """A log under construction. Time passes only where it is said."""

    def __init__(self, log: tuple[Recorded, ...] = (), now: int = START) -> None:
        self.log = log
        self._now = now

    def when(self, *steps: Step) -> "History":
        """Return this history with more events."""
        log, now = list(self.log), self._now
        for step in _flat(steps):
            if isinstance(step, Later):
                now += step.ns
            else:
                seq = len(log) + 1
                log.append(
                    Recorded(
                        seq=seq, id=f"{seq:032x}", at=now, writer="test", writer_seq=seq, event=step, schema=step.schema
                    )
                )
        return History(tuple(log), now)

    @property
    def view(self) -> View:
        view = VIEW.initial()
        for recorded in self.log:
            view = VIEW.apply(view, recorded)
        return view

    @property
    def fleet(self) -> Fleet:
        return self.view.fleet

    @property
    def latency(self) -> Latency:
        return self.view.latency

    @property
    def traces(self) -> list[Trace]:
        state, rows = Traces(), list[Trace]()
        for recorded in self.log:
            state, finals = fold(state, recorded)
            rows.extend(finals)
        return rows


def given(*steps: Step) -> History:
    """Return a history of these events."""
    return History().when(*steps)


def later(*, ms: float = 0.0, s: float = 0.0, days: float = 0.0) -> Later:
    return Later(round(ms * 1e6 + s * 1e9 + days * 86400e9))


def joined(node: str, **known: Any) -> NodeJoined:
    return NodeJoined(node=node, url=f"http://{node}:11434", **known)


def stocked(node: str, *models: str) -> NodeInventoryChanged:
    return NodeInventoryChanged(node=node, models=tuple(Model(name=name) for name in models))


def residing(node: str, *models: str) -> NodeResidencyChanged:
    return NodeResidencyChanged(node=node, loaded=tuple(Resident(name=name) for name in models))


def online(node: str) -> NodeStatusChanged:
    return NodeStatusChanged(node=node, status="online")


def received(request: str, model: str = LLAMA, **known: Any) -> RequestReceived:
    facts: dict[str, Any] = {"kind": "chat", "dialect": "ollama", "path": "/api/chat", "streaming": True}
    return RequestReceived(request=request, model=model, asked=model, **facts | known)


def chosen(request: str, node: str | None, model: str = LLAMA, *, attempt: int = 1, **known: Any) -> RouteChosen:
    return RouteChosen(
        request=request, attempt=attempt, model=model, policy="test", policy_hash="0" * 12, node=node, **known
    )


def enqueued(request: str, node: str, model: str = LLAMA, *, attempt: int = 1) -> RequestEnqueued:
    return RequestEnqueued(request=request, attempt=attempt, node=node, model=model)


def dispatched(request: str, node: str, model: str = LLAMA, *, attempt: int = 1) -> RequestDispatched:
    return RequestDispatched(request=request, attempt=attempt, node=node, model=model)


def first_token(request: str, node: str, *, attempt: int = 1) -> RequestFirstToken:
    return RequestFirstToken(request=request, attempt=attempt, node=node)


def attempt_failed(
    request: str, node: str, model: str = LLAMA, *, attempt: int = 1, cause: str = "connect", **known: Any
) -> RequestAttemptFailed:
    return RequestAttemptFailed(request=request, attempt=attempt, node=node, model=model, cause=cause, **known)


def finished(request: str, outcome: Outcome = "completed", **known: Any) -> RequestFinished:
    return RequestFinished(request=request, outcome=outcome, **known)


def served(
    request: str, node: str, model: str = LLAMA, *, ms: float = 100.0, first_ms: float | None = None, **known: Any
) -> tuple[Step, ...]:
    """A whole request that completes `ms` after its dispatch."""
    first = ms if first_ms is None else first_ms
    return (
        received(request, model),
        chosen(request, node, model),
        dispatched(request, node, model),
        later(ms=first),
        first_token(request, node),
        later(ms=ms - first),
        finished(request, node=node, model=model, attempts=1, status=200, **known),
    )


def _flat(steps: Iterable[Step]) -> Iterator[Event | Later]:
    for step in steps:
        if isinstance(step, Iterable):
            yield from _flat(step)
        else:
            yield step
