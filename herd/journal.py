"""What an operator looks for in a log file: machines that come and go, and requests that came to nothing.

The event log has everything; these are the few events that somebody who reads lines should not miss.
"""

import logging
from collections.abc import Callable
from typing import Any

from events.recorded import Recorded
from events.types import (
    Event,
    NodeDrainRequested,
    NodeJoined,
    NodeLeft,
    NodeStatusChanged,
    RequestAttemptFailed,
    RequestFinished,
)

logger = logging.getLogger(__name__)

#: Endings that are nobody's trouble.
QUIET = frozenset({"completed", "no_output", "cancelled"})

#: Refused requests get at most one line in this time.
REFUSALS_EVERY_NS = 1_000_000_000


class Journal:
    """Writes lines about events that deserve one."""

    def __init__(self) -> None:
        self._refused_at = 0
        self._refused = 0

    def write(self, recorded: Recorded) -> None:
        """Write a line, if there is one to write. Returns at once: the file has its own thread."""
        event = recorded.event
        if isinstance(event, RequestFinished) and event.outcome in ("rejected", "expired"):
            self._refuse(event, recorded.at)
        else:
            line = LINES.get(type(event))
            if line is not None:
                line(event)

    def _refuse(self, event: RequestFinished, at: int) -> None:
        # An overloaded router refuses thousands; the log then needs their number, not each of them.
        self._refused += 1
        if at - self._refused_at >= REFUSALS_EVERY_NS:
            more = f" ({self._refused - 1} more since the last such line)" if self._refused > 1 else ""
            logger.warning("request %s: %s%s", event.outcome, event.error, more, extra=_about(event))
            self._refused_at, self._refused = at, 0


def _about(event: RequestFinished | RequestAttemptFailed) -> dict[str, Any]:
    return {"request_id": event.request, "node_id": event.node, "model": event.model}


def _joined(event: NodeJoined) -> None:
    engine = f"{event.engine.name} {event.engine.version}".strip()
    logger.info("node %s joined: %s at %s", event.node, engine, event.url, extra={"node_id": event.node})


def _status(event: NodeStatusChanged) -> None:
    was = f", was {event.was}" if event.was else ""
    if event.silent_ms:
        level, why = logging.WARNING, f": silent for {event.silent_ms / 1000:.0f} s"
    else:
        level, why = logging.INFO, f": {event.why}" if event.status == "offline" and event.why else ""
    logger.log(level, "node %s is %s%s%s", event.node, event.status, was, why, extra={"node_id": event.node})


def _drain(event: NodeDrainRequested) -> None:
    logger.info("node %s takes no new work (asked by %s)", event.node, event.by, extra={"node_id": event.node})


def _left(event: NodeLeft) -> None:
    logger.info("node %s left: %s", event.node, event.why, extra={"node_id": event.node})


def _attempt_failed(event: RequestAttemptFailed) -> None:
    logger.warning(
        "node %s failed a request before the first byte (%s): %s", event.node, event.cause, event.message,
        extra=_about(event),
    )  # fmt: skip


def _finished(event: RequestFinished) -> None:
    if event.outcome in QUIET:
        return
    logger.warning(
        "request %s: %s", event.outcome, event.error,
        extra=_about(event),
    )  # fmt: skip


#: What each kind of event becomes; no other kind makes a line.
LINES: dict[type[Event], Callable[[Any], None]] = {
    NodeJoined: _joined,
    NodeStatusChanged: _status,
    NodeDrainRequested: _drain,
    NodeLeft: _left,
    RequestAttemptFailed: _attempt_failed,
    RequestFinished: _finished,
}
