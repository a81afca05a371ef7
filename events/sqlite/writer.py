"""One thread owns the disk: it groups what was appended into transactions, and outlasts a disk that fails.

A batch is a transaction: rows and `log_head` together. `log_head` says what is stored, so a commit whose outcome is in
doubt (an error after the disk had it) is looked up there before it is tried again; and it carries the epoch of its
writer, so that a router that was replaced without noticing finds out instead of writing on.

The views follow each batch in memory and are written less often, together with a batch or alone: the more rows go in
at once, the less each costs in a table with indexes.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from zlib import crc32

from events.clock import Clock
from events.recorded import Recorded
from events.sqlite import driver
from events.sqlite.rows import Inserter, Prepared
from events.store import InlineProjection, Read, StoreError

if TYPE_CHECKING:
    from sqlite3 import Connection

logger = logging.getLogger(__name__)

#: Events of one transaction, give or take a group that must not be divided.
BATCH_MAX = 512

#: How long the first event of a batch waits for company while nobody awaits it. A commit costs as much as the rows of
#: a hundred events; the price is that a process that is killed loses what it recorded in that time. Under load 25 ms
#: would save nothing more that could be measured.
LINGER_S = 0.005

#: Views are written when somebody awaits an event, when rows have waited so long, or after so many events.
VIEWS_S, VIEWS_EVENTS = 0.25, 1024

#: A checkpoint is due after this many events or transactions once nothing has come for a moment, and at four times as
#: many in any case: it holds up the next acknowledgement by 10 ms. A transaction writes some four pages, so this keeps
#: the write-ahead log near 16 MB, at most near 64 MB.
CHECKPOINT_EVENTS, CHECKPOINT_COMMITS = 4096, 1024
CALM_S = 0.1

#: Pauses between attempts while the disk fails.
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 5.0

#: How long closing keeps trying to store what is left while the disk fails.
FAREWELL_S = 5.0

#: Snapshots kept of each projection.
SNAPSHOTS_KEPT = 3

#: Batches that a due snapshot lets pass; under constant load the queue is never empty, and it would wait for ever.
SNAPSHOT_PATIENCE = 4

#: Unwritable events remembered for those who await them, which they do at once if at all.
UNWRITABLE_MAX = 4096

Entry = Recorded | list[Recorded]
Snapshot = tuple[int, int, bytes]  # version, position, state


class Fenced(Exception):
    """Another writer has taken the log over; whatever this one still holds cannot be stored."""


class SetAside(Exception):
    """A view has just failed by its own fault: the transaction must be done again without it."""


class Writer:
    """The thread that writes, and what it shares with the thread that appends.

    Shared are single references and a deque, each changed by one side only or atomic under the interpreter's lock. Each
    side announces first and looks second (`sleeping` then `queue`, `queue` then `sleeping`), so one of them sees.
    """

    def __init__(
        self,
        connect: "Callable[[], Connection]",
        connection: "Connection",
        inserter: Inserter,
        projections: Sequence[InlineProjection],
        clock: Clock,
        *,
        check: Callable[[], None],
        epoch: int,
        durable: int,
        farewell_s: float,
    ) -> None:
        self.queue: deque[Entry] = deque()
        """Appended and not yet taken."""
        self.taken: list[Recorded] = []
        """Being written."""
        self.explicit: set[int] = set()
        """Positions of queued events whose id was given by the caller."""
        self.snapshots: dict[str, Snapshot] = {}
        """Waiting to be kept, the newest of each name."""
        self.unwritable: OrderedDict[int, str] = OrderedDict()
        """Positions of the newest events that no codec could write, and why."""
        self.durable = durable
        """Position up to which everything is stored."""
        self.settled = durable
        """Position up to which everything is stored and the views show it."""
        self.awaited = 0
        """Position that somebody waits to be settled: no lingering before it."""
        self.sleeping = False
        """True when the thread must be woken by `signal` after something was queued."""
        self.failing_since: int | None = None
        self.failure = ""
        self.set_aside = ""
        """Which view failed and is no longer written, and why."""
        self.fenced = False
        self._connect = connect
        self._check = check
        self._connection = connection
        self._inserter = inserter
        self._projections = list(projections)
        self._clock = clock
        self._epoch = epoch
        self._snapshots_lock = threading.Lock()
        self._signalled = False
        self._signals: SimpleQueue[None] = SimpleQueue()
        self._closing = threading.Event()
        self._farewell_s = farewell_s
        self._farewell = 0.0
        self._followed = 0
        """Events that the views follow and whose rows or position are not written."""
        self._rows_since: float | None = None
        """Since when rows of the views wait, monotonic; None while there are none."""
        self._events_since = 0
        self._commits_since = 0
        self._snapshot_waited = 0
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)

    def start(self, read: Read, on_progress: Callable[[], None]) -> None:
        """Let the views catch up with the stored log (blocks), then begin to write.

        `on_progress` is called on the thread after each batch and each failure, and must return at once.
        """
        self._on_progress = on_progress
        for projection in list(self._projections):
            self._catch_up(projection, read)
        self._checkpoint()  # what a crash left
        self._thread.start()

    def signal(self) -> None:
        """Wake the thread, or cut its lingering short."""
        if not self._signalled:
            self._signalled = True
            self._signals.put(None)

    def stop(self) -> None:
        """Store what is queued and end the thread. Blocks; while the disk fails, little longer than `farewell_s`."""
        self._farewell = monotonic() + self._farewell_s
        self._closing.set()
        self.signal()
        self._thread.join()

    def keep_snapshot(self, name: str, version: int, position: int, state: bytes) -> None:
        """Keep a snapshot once everything up to `position` is stored; a newer one of that name may overtake it."""
        with self._snapshots_lock:
            self.snapshots[name] = (version, position, state)
        self.signal()

    def pending(self) -> list[Recorded]:
        """Return a copy of all that is not stored, in order, possibly with some that just has been."""
        waiting = self.queue.copy()  # first: events only ever move on from here
        found = list(self.taken)
        last = found[-1].seq if found else 0
        for entry in waiting:
            found += [each for each in (entry if isinstance(entry, list) else (entry,)) if each.seq > last]
        return found

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._work():
                pass
        except Fenced:
            self.fenced = True
            self._fail("another router has taken over this log; restart this one")
        except Exception as error:  # the top of the thread: nobody else would hear of it
            logger.exception("the event log's writer ended unexpectedly")
            self._fail(f"the writer ended unexpectedly: {error!r}")
        finally:
            self._checkpoint()
            self._connection.close()

    def _work(self) -> bool:
        """Do the next thing there is to do; return False when there will be none."""
        if self.queue:
            self._linger()
            self._store(self._take())
            if self._checkpoint_due(4):
                self._checkpoint()
            if self._snapshot_due():
                self._snapshot_waited += 1
                if self._snapshot_waited >= SNAPSHOT_PATIENCE and self.failing_since is None:
                    self._keep_snapshots()
        elif self._views_due():
            self._store_views()
        elif self._snapshot_due():
            self._keep_snapshots()
        elif self._closing.is_set():
            return False
        else:
            self._rest()
        return not (self._closing.is_set() and self.failing_since is not None)

    def _rest(self) -> None:
        """Sleep until there is something to do, or nothing to do for long enough to tidy up."""
        seconds = CALM_S if self._checkpoint_due(1) else None
        if self._rows_since is not None:
            seconds = max(self._rows_since + VIEWS_S - monotonic(), 0)
        self.sleeping = True
        disturbed = self._has_work() or self._doze(seconds)
        self.sleeping = False
        if not disturbed and self._rows_since is None:
            self._checkpoint()

    def _has_work(self) -> bool:
        return bool(self.queue) or self._closing.is_set() or self._views_due() or self._snapshot_due()

    def _doze(self, seconds: float | None) -> bool:
        """Wait for a signal; return False if there was none in time."""
        try:
            self._signals.get(timeout=seconds)
        except Empty:
            return False
        self._signalled = False
        return True

    def _catch_up(self, projection: InlineProjection, read: Read) -> None:
        try:
            with self._transaction() as cursor:
                projection.start(cursor, self.durable, read)
        except Exception as error:
            if driver.is_machine_trouble(error):
                raise
            self._set_aside(projection, error)

    def _set_aside(self, projection: InlineProjection, error: Exception) -> None:
        """Go on without a view that failed by its own fault.

        The log is the truth and a view can be rebuilt from it, so a bug in a view must not keep events from the disk.
        """
        trace = None if isinstance(error, StoreError) else error  # what is wrong with the log is no bug in the view
        logger.error("the view %r is set aside until the next start: %s", projection.name, error, exc_info=trace)
        why = str(error) if isinstance(error, StoreError) else repr(error)
        self.set_aside = f"the view {projection.name!r} is set aside until the next start: {why}"
        self._projections.remove(projection)
        if not self._projections:
            self._followed, self._rows_since = 0, None

    def _linger(self) -> None:
        """Let a batch gather, unless it is full or somebody awaits it."""
        until = monotonic() + LINGER_S
        while self.awaited <= self.settled and len(self.queue) < BATCH_MAX and not self._closing.is_set():
            if not self._doze(max(until - monotonic(), 0)):
                return

    def _take(self) -> list[Recorded]:
        batch = self.taken = []
        while self.queue and len(batch) < BATCH_MAX:
            entry = self.queue[0]  # taken before it is removed, so that `pending` never misses it
            if isinstance(entry, list):
                batch.extend(entry)
            else:
                batch.append(entry)
            self.queue.popleft()
        return batch

    def _store(self, batch: list[Recorded]) -> None:
        prepared = self._inserter.prepare(batch, self.explicit)
        self.unwritable.update(prepared.lost)
        while len(self.unwritable) > UNWRITABLE_MAX:
            self.unwritable.popitem(last=False)
        self._follow(prepared.batch)
        views = self._views_due()
        if not self._persist(lambda: self._commit(prepared, views=views)):
            return
        self._inserter.written()
        self.durable = batch[-1].seq
        self.taken = []
        if self.explicit:
            self.explicit.difference_update([recorded.seq for recorded in batch])
        self._events_since += len(batch)
        if views:
            self._views_written()
        if self._rows_since is None:
            self.settled = self.durable
        self._on_progress()

    def _store_views(self) -> None:
        if self._persist(self._commit_views):
            self._views_written()
            self.settled = self.durable
            self._on_progress()

    def _follow(self, batch: list[Recorded]) -> None:
        """Let the views take a batch that is about to be stored. It is never given up but at the end of the process."""
        rows = False
        for projection in list(self._projections):
            try:
                rows |= projection.follow(batch)
            except Exception as error:  # noqa: BLE001 - of whatever kind: see `_set_aside`
                self._set_aside(projection, error)
        if rows and self._rows_since is None:
            self._rows_since = monotonic()
        if self._projections:
            self._followed += len(batch)

    def _views_due(self) -> bool:
        if self._rows_since is not None and (
            self.awaited > self.settled or monotonic() >= self._rows_since + VIEWS_S or self._closing.is_set()
        ):
            return True
        return self._followed >= VIEWS_EVENTS or (self._followed > 0 and self._closing.is_set() and not self.queue)

    def _views_written(self) -> None:
        for projection in self._projections:
            projection.written()
        self._followed, self._rows_since = 0, None

    def _persist(self, commit: Callable[[], None]) -> bool:
        """Commit, as often as it takes; return False if it was not done when closing left no more time."""
        pause = RETRY_FIRST_S
        while True:
            try:
                commit()
                break
            except SetAside:
                continue
            except (driver.Error, OSError) as error:
                self._fail(str(error))
            if not self._pause(pause):
                return False
            pause = min(pause * 2, RETRY_MAX_S)
            self._reconnect()
        self._commits_since += 1
        if self.failing_since is not None:
            self.failing_since, self.failure = None, ""
        return True

    def _pause(self, seconds: float) -> bool:
        """Wait before another attempt; return False when there is no time for one."""
        if not self._closing.wait(seconds):
            return True
        sleep(RETRY_FIRST_S)
        return monotonic() < self._farewell

    def _commit(self, prepared: Prepared, *, views: bool) -> None:
        last = prepared.batch[-1]
        with self._transaction() as cursor:
            if self.failing_since is not None and self._stored(cursor) >= last.seq:
                return  # an earlier commit was done although it was reported as failed
            self._inserter.write(cursor, prepared)
            if views:
                self._write_views(cursor)
            cursor.execute(
                "UPDATE log_head SET position = ?, writer_seq = ?, updated_at = ? WHERE id = 1 AND epoch = ?",
                (last.seq, last.writer_seq, last.at, self._epoch),
            )
            if cursor.rowcount != 1:
                raise Fenced

    def _commit_views(self) -> None:
        with self._transaction() as cursor:
            self._stored(cursor)
            self._write_views(cursor)

    @contextmanager
    def _transaction(self) -> Generator[Any]:
        self._check()
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield cursor
            cursor.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.rollback()

    def _stored(self, cursor: Any) -> int:
        """Return the position up to which the log is stored."""
        head, epoch = cursor.execute("SELECT position, epoch FROM log_head WHERE id = 1").fetchone()
        if epoch != self._epoch:
            raise Fenced
        return head

    def _write_views(self, cursor: Any) -> None:
        for projection in self._projections:
            try:
                projection.write(cursor)
            except Exception as error:
                if driver.is_machine_trouble(error):
                    raise
                self._set_aside(projection, error)
                raise SetAside from error

    def _reconnect(self) -> None:
        """Open the file anew: after an I/O error, or when a file system went and came, the old one may be stuck."""
        try:
            fresh = self._connect()
        except (driver.Error, OSError) as error:
            self._fail(str(error))
            return
        with suppress(driver.Error):
            self._connection.close()
        self._connection = fresh

    def _fail(self, reason: str) -> None:
        if self.failing_since is None:
            self.failing_since = self._clock.now()
            logger.error("the event log cannot be written: %s", reason)
        self.failure = reason
        self._on_progress()

    def _checkpoint_due(self, times: int) -> bool:
        return (
            self._events_since >= CHECKPOINT_EVENTS * times or self._commits_since >= CHECKPOINT_COMMITS * times
        ) and self.failing_since is None

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the database. Only here, after the acknowledgements, and on this connection."""
        self._events_since = self._commits_since = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except driver.Error as error:
            logger.warning("the event log could not be checkpointed, which will be tried again: %s", error)

    def _snapshot_due(self) -> bool:
        # A snapshot must not know more than the log.
        return any(position <= self.durable for _, position, _ in list(self.snapshots.values()))

    def _keep_snapshots(self) -> None:
        self._snapshot_waited = 0
        for name, snapshot in list(self.snapshots.items()):
            if snapshot[1] > self.durable:
                continue
            try:
                self._store_snapshot(name, *snapshot)
            except (driver.Error, OSError) as error:
                logger.warning("the snapshot of %s could not be kept: %s", name, error)
            with self._snapshots_lock:
                if self.snapshots.get(name) is snapshot:
                    del self.snapshots[name]

    def _store_snapshot(self, name: str, version: int, position: int, state: bytes) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO snapshots (projection, version, position, at, crc32, state)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (name, version, position, self._clock.now(), crc32(state), state),
            )
            cursor.execute(
                "DELETE FROM snapshots WHERE projection = ? AND (version, position) NOT IN (SELECT version, position"
                " FROM snapshots WHERE projection = ? ORDER BY at DESC, position DESC LIMIT ?)",
                (name, name, SNAPSHOTS_KEPT),
            )
        self._commits_since += 1
