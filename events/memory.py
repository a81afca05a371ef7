"""The specification of a log in miniature: what a store promises, with nothing of what a disk makes of it."""

from collections.abc import AsyncIterator, Iterator, Sequence

from events.arrivals import Arrivals
from events.clock import Clock
from events.ids import Ids
from events.recorded import Recorded
from events.store import StoreClosed, StoreState
from events.types import Event


class MemoryStore:
    """An `EventStore` that is a list. Everything is durable at once, until the process ends."""

    def __init__(self, clock: Clock, writer: str = "memory") -> None:
        self._clock = clock
        self._writer = writer
        self._log: list[Recorded] = []
        self._by_id: dict[str, Recorded] = {}
        self._snapshots: dict[tuple[str, int], tuple[int, bytes]] = {}
        self._arrivals = Arrivals()
        self._ids = Ids()
        self._at = 0
        self._closed = False

    @property
    def writer(self) -> str:
        """The name under which this process writes."""
        return self._writer

    @property
    def state(self) -> StoreState:
        """Where the log stands now."""
        return StoreState(head=len(self._log), durable=len(self._log), queued=0)

    def stamp(self) -> int:
        """Return the time that an event appended now would bear, nanoseconds since the epoch."""
        return max(self._clock.now(), self._at)

    def append(
        self,
        event: Event,
        *,
        cause: str | None = None,
        at: int | None = None,
        id: str | None = None,  # noqa: A002  # the contract's name
    ) -> Recorded:
        """Order an event and return it with its place, or what the log already holds under `id`."""
        if self._closed:
            raise StoreClosed("the log is closed")
        if id is not None and id in self._by_id:
            return self._by_id[id]
        self._at = max(self._clock.now() if at is None else at, self._at)
        seq = len(self._log) + 1
        recorded = Recorded(
            seq=seq,
            id=id or self._ids.new(self._at),
            at=self._at,
            writer=self._writer,
            writer_seq=seq,
            event=event,
            cause=cause,
            schema=event.schema,
        )
        self._log.append(recorded)
        self._by_id[recorded.id] = recorded
        if self._arrivals.waiting:
            self._arrivals.announce()
        return recorded

    def append_all(self, events: Sequence[Event], *, cause: str | None = None) -> list[Recorded]:
        """Append several events at consecutive positions."""
        return [self.append(event, cause=cause) for event in events]

    async def flushed(self, seq: int) -> None:
        """Return: a list has nothing to wait for."""
        if seq > len(self._log):
            raise ValueError(f"position {seq} has not been appended; the head is {len(self._log)}")

    def read(
        self,
        after: int = 0,
        *,
        until: int | None = None,
        types: Sequence[type[Event]] | None = None,
        stream: str | None = None,
        backwards: bool = False,
    ) -> Iterator[Recorded]:
        """Yield events with `after < seq <= until` in order (or newest first), filtered."""
        part = self._log[max(after, 0) : until if until is None else max(until, 0)]
        for recorded in reversed(part) if backwards else part:
            if types is not None and recorded.event.__class__ not in types:
                continue
            if stream is None or recorded.stream == stream:
                yield recorded

    async def tail(self, after: int) -> AsyncIterator[Recorded]:
        """Yield every event after `after` in order as they are appended; ends when the log is closed."""
        while True:
            while after < len(self._log):
                recorded = self._log[after]
                after = recorded.seq
                yield recorded
            if self._closed:
                return
            await self._arrivals.next()

    def save_snapshot(self, name: str, version: int, seq: int, state: bytes) -> None:
        """Keep the encoded state of a fold at `seq`."""
        held = self._snapshots.get((name, version))
        if held is None or held[0] <= seq:
            self._snapshots[name, version] = (seq, state)

    def load_snapshot(self, name: str, version: int) -> tuple[int, bytes] | None:
        """Return the newest snapshot as (seq, state), or None."""
        return self._snapshots.get((name, version))

    async def close(self) -> None:
        """End every `tail`; appending afterwards raises `StoreClosed`."""
        self._closed = True
        self._arrivals.announce()
