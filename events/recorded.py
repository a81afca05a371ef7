"""The envelope: what happened, and in which order, when, and who saw it."""

import msgspec

from events.types import Event


class Recorded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event with its place in the log."""

    seq: int
    """Position in the one gapless order, from 1."""
    id: str
    """UUIDv7 as 32 hex digits; appending the same id twice records once."""
    at: int
    """Wall time in nanoseconds since the epoch; never falls within one writer."""
    writer: str
    """Which router process wrote it."""
    writer_seq: int
    """Position in that writer's own order, from 1."""
    event: Event
    cause: str | None = None
    """Id of the event that led to this one."""
    schema: int = 1
    """Version of the payload as written; the codec has already brought it up to date."""

    @property
    def stream(self) -> str:
        """The name of what this happened to."""
        return self.event.stream
