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


def write(recorded: Recorded) -> None:
    """Write a line about an event that deserves one. Returns at once: the file has its own thread."""
    line = _LINES.get(type(recorded.event))
    if line is not None:
        line(recorded.event)


def _joined(event: NodeJoined) -> None:
    engine = f"{event.engine.name} {event.engine.version}".strip()
    logger.info("node %s joined: %s at %s", event.node, engine, event.url, extra={"node_id": event.node})


def _status(event: NodeStatusChanged) -> None:
    level = logging.INFO if event.status == "online" else logging.WARNING
    was = f", was {event.was}" if event.was else ""
    silent = f", silent for {event.silent_ms / 1000:.0f} s" if event.silent_ms else ""
    logger.log(level, "node %s is %s%s%s", event.node, event.status, was, silent, extra={"node_id": event.node})


def _drain(event: NodeDrainRequested) -> None:
    logger.info("node %s takes no new work (asked by %s)", event.node, event.by, extra={"node_id": event.node})


def _left(event: NodeLeft) -> None:
    logger.info("node %s left: %s", event.node, event.why, extra={"node_id": event.node})


def _attempt_failed(event: RequestAttemptFailed) -> None:
    logger.warning(
        "node %s failed a request before the first byte (%s): %s", event.node, event.cause, event.message,
        extra={"request_id": event.request, "node_id": event.node, "model": event.model},
    )  # fmt: skip


def _finished(event: RequestFinished) -> None:
    if event.outcome in QUIET:
        return
    logger.warning(
        "request %s: %s", event.outcome, event.error,
        extra={"request_id": event.request, "node_id": event.node, "model": event.model},
    )  # fmt: skip


_LINES: dict[type[Event], Callable[[Any], None]] = {
    NodeJoined: _joined,
    NodeStatusChanged: _status,
    NodeDrainRequested: _drain,
    NodeLeft: _left,
    RequestAttemptFailed: _attempt_failed,
    RequestFinished: _finished,
}
