"""One line for each attempt to answer a request, in the words of the table that users already query.

Columns and statuses are those of `request_traces` in ollama-herd. What we hold differently, because it misled there:
every terminal failure is `failed` and says why, whether the request failed on a node, was rejected (404, 503), expired
or was abandoned; a failed attempt is `retried` only if another attempt followed; retries are counted on the terminal
row alone, so that `SUM(retry_count)` is their number; the address of the client is filled.
"""

from collections.abc import Callable, Mapping
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
VERSION = 2

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


class Open(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request that has no ending yet, and how far its newest attempt has come."""

    seq: int
    """Position of its first event."""
    received: RequestReceived
    excluded: tuple[str, ...] = ()
    retries: int = 0
    chosen: RouteChosen | None = None
    node: str = ""
    model: str = ""
    dispatched_at: int | None = None
    first_token_at: int | None = None
    failed: RequestAttemptFailed | None = None
    failed_at: int = 0


class Traces(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All open requests, as of one position in the log."""

    seq: int = 0
    open: Map[str, Open] = Map()

    @property
    def low(self) -> int:
        """Position from which the log must be read to come to this state again."""
        return low(self.open, self.seq)


def low(still_open: Mapping[str, Open], seq: int) -> int:
    """Return the position from which the log must be read to find these requests open again at `seq`."""
    return min((request.seq for request in still_open.values()), default=seq + 1)


def fold(traces: Traces, recorded: Recorded) -> tuple[Traces, tuple[Trace, ...]]:
    """Fold one event: the new state, and the rows that are now final."""
    event = recorded.event
    if not isinstance(event, RequestEvent) or event.__class__ not in FOLDED:
        return Traces(seq=recorded.seq, open=traces.open), ()
    was = traces.open.get(event.request)
    now, rows = step(was, recorded)
    if now is not None:
        return Traces(seq=recorded.seq, open=traces.open.set(event.request, now)), rows
    open_now = traces.open if was is None else traces.open.delete(event.request)
    return Traces(seq=recorded.seq, open=open_now), rows


def step(was: Open | None, recorded: Recorded) -> tuple[Open | None, tuple[Trace, ...]]:
    """Take one event of a request, one of `FOLDED`: what is known of it now, None if it is not open, and its rows."""
    event = recorded.event
    if isinstance(event, RequestReceived):
        return Open(seq=recorded.seq, received=event), ()
    if was is None:  # its beginning is not in this log, or it has ended already: never two endings for one request
        return None, ()
    return _STEPS[event.__class__](was, event, recorded.at)


def _chosen(was: Open, event: RouteChosen, _at: int) -> tuple[Open, tuple[Trace, ...]]:
    if event.node is None:
        return replace(was, excluded=event.excluded), ()
    now, rows = _next_attempt(was)
    attempt = Open(
        seq=now.seq,
        received=now.received,
        excluded=event.excluded,
        retries=now.retries,
        chosen=event,
        node=event.node,
        model=event.model,
    )
    return attempt, rows


def _enqueued(was: Open, event: RequestEnqueued, _at: int) -> tuple[Open, tuple[Trace, ...]]:
    now, rows = _next_attempt(was)
    return replace(now, node=event.node, model=event.model), rows


def _dispatched(was: Open, event: RequestDispatched, at: int) -> tuple[Open, tuple[Trace, ...]]:
    now, rows = _next_attempt(was)
    return replace(now, node=event.node, model=event.model, dispatched_at=at), rows


def _first_token(was: Open, _event: RequestFirstToken, at: int) -> tuple[Open, tuple[Trace, ...]]:
    return replace(was, first_token_at=at), ()


def _attempt_failed(was: Open, event: RequestAttemptFailed, at: int) -> tuple[Open, tuple[Trace, ...]]:
    now, rows = _next_attempt(was)
    return replace(now, node=event.node, model=event.model, failed=event, failed_at=at), rows


def _finished(was: Open, event: RequestFinished, at: int) -> tuple[None, tuple[Trace, ...]]:
    why = event.error or (_failure(was.failed) if was.failed else "") or _WHY.get(event.outcome)
    row = _row(
        was,
        _STATUS[event.outcome],
        at,
        node=event.node or was.node,
        model=event.model or was.model,
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
    failed = was.failed
    if failed is None:
        return was, ()
    row = _row(was, "retried", was.failed_at, node=failed.node, model=failed.model, error=_failure(failed))
    return Open(seq=was.seq, received=was.received, excluded=was.excluded, retries=was.retries + 1), (row,)


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
    asked = was.received
    model = model or asked.model
    abandoned = finished is not None and finished.outcome == "abandoned"
    return Trace(
        request_id=asked.request,
        model=model,
        original_model=asked.model,
        node_id=node,
        score=was.chosen.score if was.chosen else None,
        scores_breakdown=_breakdown(was.chosen) if was.chosen else {},
        status=status,
        # A request that was abandoned ended at an unknown time: what is recorded is when the router was back.
        latency_ms=None if abandoned else _between_ms(was.dispatched_at, at),
        time_to_first_token_ms=_between_ms(was.dispatched_at, was.first_token_at),
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
    breakdown: dict[str, float] = {}
    for candidate in chosen.candidates:
        if candidate.node == chosen.node:
            breakdown = dict(zip(chosen.signals, candidate.points, strict=False))
            break
    breakdown["total"] = chosen.score
    return breakdown


def _failure(failed: RequestAttemptFailed) -> str:
    if failed.message:
        return failed.message
    return f"{failed.cause} (HTTP {failed.status})" if failed.status else failed.cause
