"""One line for each attempt to answer a request, in the words of the table that users already query.

Columns and statuses are those of `request_traces` in ollama-herd. What we hold differently, because it misled there:
every terminal failure is `failed` and says why, whether the request failed on a node, was rejected (404, 503), expired
or was abandoned; a failed attempt is `retried` only if another attempt followed; retries are counted on the terminal
row alone, so that `SUM(retry_count)` is their number; the address of the client is filled.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from immutables import Map
from msgspec.structs import replace

from events.recorded import Recorded
from events.types import (
    Event,
    Outcome,
    RequestAttemptFailed,
    RequestDispatched,
    RequestEnqueued,
    RequestEvent,
    RequestFinished,
    RequestFirstToken,
    RequestReceived,
    RouteChosen,
)

NAME = "request_traces"
#: Raise it whenever a row would come out differently: the table is then rebuilt from the log.
VERSION = 1

Status = Literal["completed", "failed", "retried", "client_disconnected", "incomplete", "no_output"]

_STATUS: dict[Outcome, Status] = {
    "completed": "completed",
    "failed": "failed",
    "incomplete": "incomplete",
    "no_output": "no_output",
    "cancelled": "client_disconnected",
    "expired": "failed",
    "rejected": "failed",
    "abandoned": "failed",
}

_WHY: dict[Outcome, str] = {
    "failed": "the node failed",
    "incomplete": "the node's answer ended before it was complete",
    "cancelled": "the client went away",
    "expired": "the request waited too long",
    "rejected": "no node could serve the request",
    "abandoned": "the router stopped before the request ended",
}


class Trace(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A row of `request_traces`, its id aside; also an entry of `/dashboard/api/traces`."""

    request_id: str
    model: str
    """Canonical name of the model that was used."""
    original_model: str
    """Canonical name of the model that was asked for."""
    node_id: str
    """Empty where no node was found."""
    score: float | None
    scores_breakdown: dict[str, float]
    """Points by signal, and `total`; empty where no node was found."""
    status: Status
    latency_ms: float | None
    """From this attempt's dispatch to its end; None if it was never dispatched."""
    time_to_first_token_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    retry_count: int
    fallback_used: bool
    excluded_nodes: tuple[str, ...]
    client_ip: str
    original_format: str
    error_message: str | None
    timestamp: float
    """End of the attempt, seconds since the epoch."""
    tags: tuple[str, ...]
    finish_reason: str | None
    estimated_tokens: int | None


class Attempt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How far the newest attempt of an open request has come."""

    chosen: RouteChosen | None = None
    node: str = ""
    model: str = ""
    dispatched_at: int | None = None
    first_token_at: int | None = None
    failed: RequestAttemptFailed | None = None
    failed_at: int = 0


class Open(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request that has no ending yet."""

    seq: int
    """Position of its first event."""
    received: RequestReceived
    attempt: Attempt = Attempt()
    excluded: tuple[str, ...] = ()
    retries: int = 0


class Traces(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All open requests, as of one position in the log."""

    seq: int = 0
    open: Map[str, Open] = Map()

    @property
    def low(self) -> int:
        """Position from which the log must be read to come to this state again."""
        return min((request.seq for request in self.open.values()), default=self.seq + 1)


def fold(traces: Traces, recorded: Recorded) -> tuple[Traces, tuple[Trace, ...]]:
    """Fold one event: the new state, and the rows that are now final."""
    event = recorded.event
    if isinstance(event, RequestReceived):
        opened = Open(seq=recorded.seq, received=event)
        return Traces(seq=recorded.seq, open=traces.open.set(event.request, opened)), ()
    step = _STEPS.get(type(event))
    if step is None or not isinstance(event, RequestEvent):
        return Traces(seq=recorded.seq, open=traces.open), ()
    was = traces.open.get(event.request)
    if was is None:  # its beginning is not in this log, or it has ended already: never two endings for one request
        return Traces(seq=recorded.seq, open=traces.open), ()
    now, rows = step(was, event, recorded.at)
    open_now = traces.open.delete(event.request) if now is None else traces.open.set(event.request, now)
    return Traces(seq=recorded.seq, open=open_now), rows


def _chosen(was: Open, event: RouteChosen, _at: int) -> tuple[Open, tuple[Trace, ...]]:
    if event.node is None:
        return replace(was, excluded=event.excluded), ()
    now, rows = _next_attempt(was)
    attempt = Attempt(chosen=event, node=event.node, model=event.model)
    return replace(now, attempt=attempt, excluded=event.excluded), rows


def _enqueued(was: Open, event: RequestEnqueued, _at: int) -> tuple[Open, tuple[Trace, ...]]:
    now, rows = _next_attempt(was)
    return replace(now, attempt=replace(now.attempt, node=event.node, model=event.model)), rows


def _dispatched(was: Open, event: RequestDispatched, at: int) -> tuple[Open, tuple[Trace, ...]]:
    now, rows = _next_attempt(was)
    attempt = replace(now.attempt, node=event.node, model=event.model, dispatched_at=at)
    return replace(now, attempt=attempt), rows


def _first_token(was: Open, _event: RequestFirstToken, at: int) -> tuple[Open, tuple[Trace, ...]]:
    return replace(was, attempt=replace(was.attempt, first_token_at=at)), ()


def _attempt_failed(was: Open, event: RequestAttemptFailed, at: int) -> tuple[Open, tuple[Trace, ...]]:
    now, rows = _next_attempt(was)
    attempt = replace(now.attempt, node=event.node, model=event.model, failed=event, failed_at=at)
    return replace(now, attempt=attempt), rows


def _finished(was: Open, event: RequestFinished, at: int) -> tuple[None, tuple[Trace, ...]]:
    failed = was.attempt.failed
    why = event.error or (_failure(failed) if failed else "") or _WHY.get(event.outcome)
    row = _row(
        was,
        _STATUS[event.outcome],
        at,
        node=event.node or was.attempt.node,
        model=event.model or was.attempt.model,
        error=None if event.outcome in ("completed", "no_output") else why,
        finished=event,
    )
    return None, (row,)


_STEPS: dict[type[Event], Callable[[Open, Any, int], tuple[Open | None, tuple[Trace, ...]]]] = {
    RouteChosen: _chosen,
    RequestEnqueued: _enqueued,
    RequestDispatched: _dispatched,
    RequestFirstToken: _first_token,
    RequestAttemptFailed: _attempt_failed,
    RequestFinished: _finished,
}

#: The events that make rows; a rebuild needs no others.
FOLDED = (RequestReceived, *_STEPS)


def _next_attempt(was: Open) -> tuple[Open, tuple[Trace, ...]]:
    """Close a failed attempt, now that it is known that another one follows."""
    failed = was.attempt.failed
    if failed is None:
        return was, ()
    row = _row(was, "retried", was.attempt.failed_at, node=failed.node, model=failed.model, error=_failure(failed))
    return replace(was, attempt=Attempt(), retries=was.retries + 1), (row,)


def _row(
    was: Open,
    status: Status,
    at: int,
    *,
    node: str,
    model: str,
    error: str | None,
    finished: RequestFinished | None = None,
) -> Trace:
    asked, attempt = was.received, was.attempt
    model = model or asked.model
    dispatched_at, first_token_at = attempt.dispatched_at, attempt.first_token_at
    return Trace(
        request_id=asked.request,
        model=model,
        original_model=asked.model,
        node_id=node,
        score=attempt.chosen.score if attempt.chosen else None,
        scores_breakdown=_breakdown(attempt.chosen) if attempt.chosen else {},
        status=status,
        latency_ms=_between_ms(dispatched_at, at),
        time_to_first_token_ms=_between_ms(dispatched_at, first_token_at),
        prompt_tokens=finished.prompt_tokens if finished else None,
        completion_tokens=finished.completion_tokens if finished else None,
        retry_count=was.retries if finished else 0,
        fallback_used=model != asked.model,
        excluded_nodes=was.excluded,
        client_ip=asked.client,
        original_format=asked.dialect,
        error_message=error,
        timestamp=at / 1e9,
        tags=asked.tags,
        finish_reason=(finished.finish_reason or None) if finished else None,
        estimated_tokens=asked.tokens_estimated or None,
    )


def _between_ms(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1e6


def _breakdown(chosen: RouteChosen) -> dict[str, float]:
    points = next((one.points for one in chosen.candidates if one.node == chosen.node), ())
    return {**dict(zip(chosen.signals, points, strict=False)), "total": chosen.score}


def _failure(failed: RequestAttemptFailed) -> str:
    if failed.message:
        return failed.message
    return f"{failed.cause} (HTTP {failed.status})" if failed.status else failed.cause
