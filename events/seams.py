"""Where events were lost, what a router did next rests on things the log does not hold: proofs must know the place."""

from datetime import UTC, datetime
from typing import Self

import msgspec

from events.recorded import Recorded
from events.types import LogInterrupted, RouterStarted

#: So many seams are told in full; of the rest only the lost events are counted.
SEAMS_MAX = 20


class Seam(msgspec.Struct, frozen=True, kw_only=True):
    """One place in a log at which events are missing."""

    seq: int
    """The position that the lost events share."""
    lost: int
    since: int
    """First failure, nanoseconds since the epoch."""
    until: int
    """When there was room again, nanoseconds since the epoch."""
    why: str = ""

    @classmethod
    def of(cls, seq: int, event: LogInterrupted) -> Self:
        """Return the seam that an event at this position marks."""
        return cls(seq=seq, lost=event.lost, since=event.since, until=event.until, why=event.why)

    @property
    def sentence(self) -> str:
        """The seam in words."""
        count = "1 event was" if self.lost == 1 else f"{self.lost} events were"
        why = f" ({self.why})" if self.why else ""
        return f"{count} lost at position {self.seq}, between {_utc(self.since)} and {_utc(self.until)}{why}"


class Seams:
    """Follows a log, and knows at each event whether the router that wrote it had seen more than the log tells.

    A router folds an event before the disk has it, so from a loss to the end of its run its view is its own. The next
    run begins with what the log says.
    """

    def __init__(self) -> None:
        self.first: list[Seam] = []
        """The first of all."""
        self.lost = 0
        """Events lost at all of them."""
        self.open: Seam | None = None
        """The first seam of the run that is being read; None while there is none."""

    def follow(self, recorded: Recorded) -> None:
        """Take the next event."""
        event = recorded.event
        if isinstance(event, LogInterrupted):
            seam = Seam.of(recorded.seq, event)
            self.open = self.open or seam
            self.lost += seam.lost
            if len(self.first) < SEAMS_MAX:
                self.first.append(seam)
        elif isinstance(event, RouterStarted):
            self.open = None


def _utc(at: int) -> str:
    return datetime.fromtimestamp(at / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
