"""The request path orders events here and goes on; the disk follows on a thread of its own.

A position is handed out at once and never taken back, and the stored log has no holes. Both hold although events can be
lost when the disk fails for longer than the queue lasts: events that are lost one after another share *one* position,
the one that a `LogInterrupted` takes in the log as soon as there is room again. See docs/decisions/0002-durability.md.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
from filelock import FileLock, Timeout

from events.arrivals import Arrivals
from events.clock import Clock, ShiftedClock
from events.codec import CODEC, Codec
from events.ids import Ids
from events.recorded import Recorded
from events.sqlite import database, driver
from events.sqlite.claim import Claim, take_over
from events.sqlite.database import Durability, Pin
from events.sqlite.reader import Reader
from events.sqlite.rows import Inserter
from events.sqlite.writer import FAREWELL_S, Writer
from events.store import InlineProjection, StoreClosed, StoreInUse, StoreState, StoreUnavailable
from events.types import Event, LogInterrupted

if TYPE_CHECKING:
    from sqlite3 import Connection

#: Share of the queue from which on readings are dropped, so that decisions and outcomes find room.
TELEMETRY_SHARE = 0.9

#: Events kept in memory for those who follow the log; who falls back further reads from the disk.
RECENT_MAX = 1024

#: Explicit ids remembered, to answer a repetition without asking the disk.
REMEMBERED_MAX = 4096

#: Events that a follower who fell back reads at once.
_PAGE = 1000


class _Loss(msgspec.Struct, kw_only=True):
    """A run of events that found no room, on the one position that they share."""

    seq: int
    lost: int = 0
    since: int
    why: str


class SQLiteStore:
    """An `EventStore` in one SQLite file. All methods but `read` and `load_snapshot` belong to the owner's thread.

    Appending never blocks, and never fails for the disk's sake. At most `queue_max` events wait to be stored; beyond
    that (for readings from nine tenths on) they are lost and counted. Who appends in bulk awaits `flushed` at times.
    """

    def __init__(
        self,
        name: str,
        claim: Claim,
        writer: Writer,
        reader: Reader,
        lock: FileLock,
        *,
        pin: Pin,
        clock: Clock,
        queue_max: int,
    ) -> None:
        self._name = name
        self._clock = clock
        self._writer = writer
        self._reader = reader
        self._lock = lock
        self._pin = pin
        self._ids = Ids()
        self._queue = self._writer.queue
        self._seq = claim.head
        self._ahead = claim.writer_seq - claim.head
        self._at = claim.at
        self._queue_max = queue_max
        self._readings_max = int(queue_max * TELEMETRY_SHARE)
        self._quick_max = self._readings_max
        """Below so many queued events `append` has nothing to consider; -1 while it always has."""
        self._recent: deque[Recorded] = deque(maxlen=RECENT_MAX)
        self._remembered: OrderedDict[str, Recorded] = OrderedDict()
        self._arrivals = Arrivals()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._loss: _Loss | None = None
        self._losses: OrderedDict[int, str] = OrderedDict()
        """Positions of the newest losses that are over, and why; whoever awaits such an event has just appended it."""
        self._lost = 0
        self._closed = False
        self._replaced = asyncio.Event()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        clock: Clock,
        writer: str,
        durability: Durability = "full",
        queue_max: int = 50_000,
        projections: Sequence[InlineProjection] = (),
        codec: Codec = CODEC,
        scripts: Path | None = None,
        connect: "Callable[[Path, Durability], Connection]" = database.connect_writer,
        farewell_s: float = FAREWELL_S,
    ) -> Self:
        """Take over the log at `path` for writing: create or migrate it, fence former writers, let the views catch up.

        Blocks. `scripts` is where the migrations are, by default those of this installation; `farewell_s` is how long
        closing keeps trying while the disk fails. Raises `StoreInUse` while another router has the log,
        `ForeignDatabase` for a file that is not ours, `StoreDamaged` for one that lacks what it cannot do
        without, `StoreUnavailable` for one that cannot be written.
        """
        path = Path(path)
        lock = FileLock(f"{path}.lock", blocking=False, thread_local=False)
        with _translated(path), ExitStack() as undo:
            path.parent.mkdir(parents=True, exist_ok=True)
            database.revision(path)  # a foreign file is refused before anything is put beside it
            lock.acquire()
            undo.callback(lock.release)
            database.prepare(path, scripts)
            connection = connect(path, durability)
            undo.callback(connection.close)
            claim = take_over(connection, writer)
            pin = database.Pin(path)  # now that it has a write-ahead log
            undo.callback(pin.release)
            behind_ns = claim.at - clock.now()
            clock = ShiftedClock(clock, by_ns=behind_ns) if behind_ns > 0 else clock
            reader = Reader(lambda: database.connect_reader(path), codec)
            thread = Writer(
                lambda: connect(path, durability),
                connection,
                Inserter(codec, claim.writer, claim.types),
                projections,
                clock,
                check=pin.check,
                epoch=claim.epoch,
                durable=claim.head,
                farewell_s=farewell_s,
            )
            store = cls(writer, claim, thread, reader, lock, pin=pin, clock=clock, queue_max=queue_max)
            thread.start(reader.read, store._progressed)
            undo.pop_all()
            return store

    @property
    def writer(self) -> str:
        """The name under which this process writes."""
        return self._name

    @property
    def state(self) -> StoreState:
        """Where the log stands now."""
        writer = self._writer
        return StoreState(
            head=self._seq,
            durable=writer.durable,
            queued=self._seq - writer.durable,
            failing_since=writer.failing_since,
            failure=writer.failure or writer.set_aside,
            lost=self._lost,
        )

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
        """Order an event and return it with its place, or what the log already holds under `id`.

        Raises `StoreClosed`; and `StoreUnavailable` only when an `id` has to be looked up and the disk cannot be read.
        """
        seq = self._seq
        if id is not None or seq - self._writer.durable >= self._quick_max:
            return self._append_with_care(event, cause, at, id)
        now = self._clock.now() if at is None else at
        if now < self._at:
            now = self._at
        else:
            self._at = now
        self._seq = seq = seq + 1
        recorded = Recorded(
            seq=seq,
            id=self._ids.new(now),
            at=now,
            writer=self._name,
            writer_seq=seq + self._ahead,
            event=event,
            cause=cause,
            schema=event.schema,
        )
        self._queue.append(recorded)
        self._recent.append(recorded)
        if self._writer.sleeping:
            self._writer.signal()
        if self._arrivals.waiting:
            self._arrivals.announce()
        return recorded

    def append_all(self, events: Sequence[Event], *, cause: str | None = None) -> list[Recorded]:
        """Append several events at consecutive positions, stored together or not at all, or lost together."""
        if self._closed:
            raise StoreClosed("the log is closed")
        if not events:
            return []
        if not self._has_room(len(events), self._queue_max):
            return [self._lose(event, cause, None) for event in events]
        self._end_loss()
        group = [self._order(event, cause, None, None) for event in events]
        self._queue.append(group)
        self._recent.extend(group)
        self._wake()
        return group

    async def flushed(self, seq: int) -> None:
        """Return when the event at `seq` and all before it that were not lost are durable and the views show it.

        Raises `StoreUnavailable` if writing fails: the event may still be stored later, unless it was lost.
        """
        if self._loss is not None and seq >= self._loss.seq:
            raise StoreUnavailable(f"the event log is full and this event is lost: {self._loss.why}")
        if seq in self._losses:
            raise StoreUnavailable(f"the event log was full and this event is lost: {self._losses[seq]}")
        if seq > self._writer.settled:
            await self._stored(seq)
        if seq in self._writer.unwritable:
            raise StoreUnavailable(f"this event is lost: {self._writer.unwritable[seq]}")

    async def _stored(self, seq: int) -> None:
        writer = self._writer
        if seq > self._seq:
            raise ValueError(f"position {seq} has not been appended; the head is {self._seq}")
        if self._closed:
            raise StoreClosed("the log is closed")
        self._loop = asyncio.get_running_loop()
        future = self._loop.create_future()
        self._flushes.append((seq, future))
        writer.awaited = max(writer.awaited, seq)
        writer.signal()
        if writer.settled >= seq or writer.failing_since is not None:
            self._settle()
        await future

    async def replaced(self) -> None:
        """Return when another router has taken the log over: from then on nothing that is appended here is stored."""
        self._loop = asyncio.get_running_loop()
        if not self._writer.fenced:
            await self._replaced.wait()

    def read(
        self,
        after: int = 0,
        *,
        until: int | None = None,
        types: Sequence[type[Event]] | None = None,
        stream: str | None = None,
        backwards: bool = False,
    ) -> Iterator[Recorded]:
        """Yield stored events with `after < seq <= until` in order (or newest first), filtered. Any thread; blocks."""
        return self._reader.read(after, until=until, types=types, stream=stream, backwards=backwards)

    async def tail(self, after: int) -> AsyncIterator[Recorded]:
        """Yield every event after `after` in order as they are appended; ends when the log is closed."""
        while True:
            if after >= self._seq:
                if self._closed:
                    return
                await self._arrivals.next()
                continue
            for recorded in await self._page(after):
                after = recorded.seq
                yield recorded

    def save_snapshot(self, name: str, version: int, seq: int, state: bytes) -> None:
        """Keep the encoded state of a fold at `seq`, once the log is durable up to there. Returns at once."""
        self._writer.keep_snapshot(name, version, seq, state)

    def load_snapshot(self, name: str, version: int) -> tuple[int, bytes] | None:
        """Return the newest intact snapshot as (seq, state), or None. Blocks on I/O."""
        waiting = self._writer.snapshots.get(name)
        if waiting is not None and waiting[0] == version:
            return waiting[1:]
        return self._reader.load_snapshot(name, version)

    async def close(self) -> None:
        """Store what is queued, then let go of the log. Appending afterwards raises `StoreClosed`.

        Raises `StoreUnavailable` if something could not be stored.
        """
        if self._closed:
            return
        self._end_loss()
        self._closed = True
        self._quick_max = -1
        self._reader.close()  # the last connection that closes must be the writer's, which tidies up
        await asyncio.to_thread(self._writer.stop)
        self._settle()
        self._arrivals.announce()
        self._pin.release()
        self._lock.release()
        left = self._seq - self._writer.durable
        if left:
            raise self._trouble(f"{left} events could not be stored")

    # --- ordering, with all that can be in the way ------------------------------------------------------------------

    def _append_with_care(self, event: Event, cause: str | None, at: int | None, event_id: str | None) -> Recorded:
        if self._closed:
            raise StoreClosed("the log is closed")
        if event_id is not None:
            held = self._held(event_id)
            if held is not None:
                return held
        if not self._has_room(1, self._readings_max if event.telemetry else self._queue_max):
            return self._lose(event, cause, at)
        self._end_loss()
        recorded = self._order(event, cause, at, event_id)
        if event_id is not None:
            self._remembered[event_id] = recorded
            if len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)
            self._writer.explicit.add(recorded.seq)
        self._queue.append(recorded)
        self._recent.append(recorded)
        self._wake()
        return recorded

    def _order(self, event: Event, cause: str | None, at: int | None, event_id: str | None) -> Recorded:
        self._seq += 1
        return self._recorded(self._seq, event, cause, at, event_id)

    def _recorded(self, seq: int, event: Event, cause: str | None, at: int | None, event_id: str | None) -> Recorded:
        self._at = max(self._clock.now() if at is None else at, self._at)
        return Recorded(
            seq=seq,
            id=event_id or self._ids.new(self._at),
            at=self._at,
            writer=self._name,
            writer_seq=seq + self._ahead,
            event=event,
            cause=cause,
            schema=event.schema,
        )

    def _wake(self) -> None:
        if self._writer.sleeping:
            self._writer.signal()
        if self._arrivals.waiting:
            self._arrivals.announce()

    def _held(self, event_id: str) -> Recorded | None:
        """Return what the log has under this id: remembered, waiting for the disk, or stored."""
        held = self._remembered.get(event_id)
        if held is None:
            held = next((each for each in self._writer.pending() if each.id == event_id), None)
        return held if held is not None else self._reader.find(event_id)

    # --- loss -------------------------------------------------------------------------------------------------------

    def _has_room(self, count: int, limit: int) -> bool:
        queued = self._seq - self._writer.durable + (self._loss is not None)
        return queued + count <= limit

    def _lose(self, event: Event, cause: str | None, at: int | None) -> Recorded:
        """Count an event that finds no room, and return it with the position that it shares with its like."""
        failing_since = self._writer.failing_since
        if self._loss is None:
            why = self._writer.failure or "events came faster than the disk could take them"
            self._loss = _Loss(seq=self._seq + 1, since=failing_since or self.stamp(), why=why)
            self._quick_max = -1
            with suppress(RuntimeError):  # without a loop the next append will see that there is room again
                self._loop = asyncio.get_running_loop()
        elif self._writer.failure:  # what held the writer up is known by now
            self._loss.why = self._writer.failure
        self._loss.lost += 1
        self._lost += 1
        return self._recorded(self._loss.seq, event, cause, at, None)

    def _end_loss(self) -> None:
        """Put the fact that events were lost in their place."""
        loss = self._loss
        if loss is None:
            return
        self._loss = None
        self._quick_max = self._readings_max
        lost = LogInterrupted(lost=loss.lost, since=loss.since, until=self.stamp(), why=loss.why)
        recorded = self._order(lost, None, None, None)
        assert recorded.seq == loss.seq
        self._losses[loss.seq] = loss.why
        if len(self._losses) > REMEMBERED_MAX:
            self._losses.popitem(last=False)
        self._queue.append(recorded)
        self._recent.append(recorded)
        self._wake()

    # --- what the writer reports ------------------------------------------------------------------------------------

    def _progressed(self) -> None:
        """Called on the writer's thread after each batch and each failure."""
        if self._loop is not None and (self._flushes or self._loss is not None or self._writer.fenced):
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """Answer those who await durability or the end, and end a loss that has found room."""
        if self._writer.fenced:
            self._replaced.set()
        if self._loss is not None and self._has_room(0, self._queue_max):
            self._end_loss()
        settled, failing = self._writer.settled, self._writer.failing_since is not None or self._closed
        waiting: list[tuple[int, asyncio.Future[None]]] = []
        for seq, future in self._flushes:
            if future.done():
                continue
            if seq <= settled:
                future.set_result(None)
            elif failing:
                future.set_exception(self._trouble("the event is not stored"))
            else:
                waiting.append((seq, future))
        self._flushes = waiting

    def _trouble(self, what: str) -> StoreUnavailable | StoreInUse:
        message = f"{what}: {self._writer.failure}"
        return StoreInUse(message) if self._writer.fenced else StoreUnavailable(message)

    async def _page(self, after: int) -> list[Recorded]:
        """Return the next events after a position below the head: from memory, else from the disk."""
        recent = self._recent
        if recent and after + 1 >= recent[0].seq:
            return list(islice(recent, after + 1 - recent[0].seq, None))
        if after < self._writer.durable:
            return await asyncio.to_thread(lambda: list(self._reader.read(after, until=after + _PAGE)))
        return [recorded for recorded in self._writer.pending() if recorded.seq > after]


@contextmanager
def _translated(path: Path) -> Generator[None]:
    """Say what went wrong at opening in the words of a store."""
    try:
        yield
    except Timeout as error:
        pid = database.holder(path)
        by = f", process {pid}" if pid else ""
        raise StoreInUse(f"the event log {path} is in use by another router{by}: stop that one first") from error
    except driver.Error as error:
        if driver.is_refusal(error):
            message = f"cannot write {path}: the file, its directory or the file system is read-only ({error})"
            raise StoreUnavailable(message) from error
        raise StoreUnavailable(f"cannot open the event log {path}: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"cannot write {error.filename or path}: {error.strerror or error}") from error
