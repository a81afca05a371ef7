"""What every log promises, whether it is a list in memory or a database: one contract, one suite of tests.

`append` fixes the order at once and never waits for a disk; `flushed` waits for durability where it was promised.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from events.recorded import Recorded
from events.types import Event


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """How the log is doing, for /healthz and the operator."""

    head: int
    """Position of the last event appended."""
    durable: int
    """Position up to which the log is safely stored."""
    queued: int
    """Events appended but not yet stored."""
    failing_since: int | None = None
    """When writing began to fail (nanoseconds since the epoch); None while it works."""
    failure: str = ""
    lost: int = 0
    """Events dropped since writing last began to fail, because the queue was full; stays when it works again."""


class Read(Protocol):
    """Reads a stored log in order; see `EventStore.read`."""

    def __call__(self, after: int, *, types: Sequence[type[Event]] | None = None) -> Iterator[Recorded]:
        """Yield the stored events after a position, of these types only."""
        ...


class InlineProjection(Protocol):
    """A view in the log's own database: never half applied, never counted twice, never ahead of the log.

    All methods run on the store's writer thread; a `cursor` is a plain DBAPI cursor in a transaction that the store
    begins and commits. A view that raises for a reason other than the disk is set aside until the next start, so that a
    bug in a view cannot stop the log.
    """

    @property
    def name(self) -> str:
        """The name under which its position is kept."""
        ...

    def start(self, cursor: Any, head: int, read: Read) -> None:
        """Catch up with the stored log (`read(after)` yields it up to `head`), or rebuild after a new version."""
        ...

    def follow(self, batch: Sequence[Recorded]) -> bool:
        """Take events that are about to be stored, once each and in order; return whether rows wait to be written.

        It must leave the database alone: the store decides when `write` is worth a transaction.
        """
        ...

    def write(self, cursor: Any) -> None:
        """Write all rows that wait, and the position of the last event that was followed.

        Called again with the same if the transaction failed, and also if it only seemed to fail.
        """
        ...

    def written(self) -> None:
        """What `write` wrote is stored and can be forgotten."""
        ...


class EventStore(Protocol):
    """An append-only log with one gapless order."""

    @property
    def writer(self) -> str:
        """The name under which this process writes."""
        ...

    @property
    def state(self) -> StoreState:
        """Where the log stands now."""
        ...

    def stamp(self) -> int:
        """Return the time that an event appended now would bear, nanoseconds since the epoch."""
        ...

    def append(
        self,
        event: Event,
        *,
        cause: str | None = None,
        at: int | None = None,
        id: str | None = None,  # noqa: A002
    ) -> Recorded:
        """Order an event and return it with its place; it is readable at once by `tail`, and durable soon after.

        Must be called from the thread that owns the store. `at` defaults to the clock; time never runs backwards. An
        `id` that the log already holds appends nothing and returns what is there.
        """
        ...

    def append_all(self, events: Sequence[Event], *, cause: str | None = None) -> list[Recorded]:
        """Append several events in one go: consecutive positions, stored together or not at all."""
        ...

    async def flushed(self, seq: int) -> None:
        """Return when the event at `seq` and all before it that were not lost are durable and in the store's views.

        Raises `StoreUnavailable` if writing fails or if the event was lost, also when the log works again.
        """
        ...

    def read(
        self,
        after: int = 0,
        *,
        until: int | None = None,
        types: Sequence[type[Event]] | None = None,
        stream: str | None = None,
        backwards: bool = False,
    ) -> Iterator[Recorded]:
        """Yield stored events with `after < seq <= until` in order (or newest first), filtered. Blocks on I/O."""
        ...

    def tail(self, after: int) -> AsyncIterator[Recorded]:
        """Yield every event after `after` in order, without a gap and without end, as they are appended."""
        ...

    def save_snapshot(self, name: str, version: int, seq: int, state: bytes) -> None:
        """Keep the encoded state of a fold at `seq`. Returns at once; a cache, so losing it costs only time."""
        ...

    def load_snapshot(self, name: str, version: int) -> tuple[int, bytes] | None:
        """Return the newest intact snapshot as (seq, state), or None."""
        ...

    async def close(self) -> None:
        """Store what is queued, then let go of the log. Appending afterwards raises `StoreClosed`."""
        ...


class StoreError(Exception):
    """Anything that can go wrong with a log."""


class StoreClosed(StoreError):
    """The log was closed."""


class StoreUnavailable(StoreError):
    """The log cannot be written or read now: disk full, read-only, lost connection."""


class StoreInUse(StoreError):
    """Another router writes this log."""


class ForeignDatabase(StoreError):
    """The file is a database of another program, such as the peer's; it was left as it is."""


class UnknownEvent(StoreError):
    """The log holds an event that this release does not know."""


class StoreDamaged(StoreError):
    """The file is a log, but something without which it cannot be used is missing from it."""
