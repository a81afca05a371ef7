"""Reading must never stand in the writer's way: short transactions, own connections, and nothing that checkpoints."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from events.codec import CODEC, Codec
from events.recorded import Recorded
from events.sqlite import database, driver
from events.sqlite.rows import READ_COLUMNS, Selection, key, unkey
from events.store import StoreClosed, StoreError, StoreUnavailable, UnknownEvent
from events.types import Event

if TYPE_CHECKING:
    from sqlite3 import Connection

#: Rows read at once: few at first, for those who want only the newest, then many.
_PAGE_FIRST, _PAGE_MAX = 64, 2048

#: Connections kept open for the next reader.
_IDLE_MAX = 4


class Reader:
    """The stored part of a log. Any thread may use it; each `read` has its own connection while it fetches a page."""

    def __init__(self, connect: Callable[[], "Connection"], codec: Codec = CODEC) -> None:
        self._connect = connect
        self._codec = codec
        self._idle: deque[Connection] = deque()
        self._writers: dict[int, str] = {}
        self._closed = False

    @property
    def head(self) -> int:
        """Position of the last stored event; 0 in an empty log."""
        with self._borrowed() as connection:
            return database.head_of(connection.execute("SELECT position FROM log_head WHERE id = 1").fetchone())[0]

    def read(
        self,
        after: int = 0,
        *,
        until: int | None = None,
        types: Sequence[type[Event]] | None = None,
        stream: str | None = None,
        backwards: bool = False,
    ) -> Iterator[Recorded]:
        """Yield stored events with `after < seq <= until` in order (or newest first), filtered. Blocks on I/O.

        What is stored after the first event was asked for is not read. Raises `UnknownEvent` at an event of a later
        release, `StoreUnavailable` when the disk fails.
        """
        head = self.head
        last = head if until is None else min(until, head)
        statement = Selection(types=types, stream=stream, backwards=backwards).statement()
        size = _PAGE_FIRST
        while after < last:
            values: dict[str, Any] = {"after": after, "until": last, "limit": size}
            if stream is not None:
                values["stream"] = stream
            with self._borrowed() as connection:
                rows = connection.execute(statement, values).fetchall()
            for row in rows:
                yield self._recorded(row)
            if len(rows) < size:
                return
            if backwards:
                last = rows[-1][0] - 1
            else:
                after = rows[-1][0]
            size = min(size * 4, _PAGE_MAX)

    def find(self, event_id: str) -> Recorded | None:
        """Return the event with this id, or None. Readings that were not given their id are not looked at."""
        with self._borrowed() as connection:
            row = connection.execute(
                f"SELECT {READ_COLUMNS} FROM events WHERE event_id = ?", (key(event_id),)
            ).fetchone()
        return self._recorded(row) if row is not None else None

    def load_snapshot(self, name: str, version: int) -> tuple[int, bytes] | None:
        """Return the newest intact snapshot as (seq, state), or None."""
        return next(iter(self.snapshots(name, version)), None)

    def snapshots(self, name: str, version: int) -> list[tuple[int, bytes]]:
        """Return all intact snapshots that are kept, as (seq, state), newest first."""
        with self._borrowed() as connection:
            rows = connection.execute(
                "SELECT position, crc32, state FROM snapshots WHERE projection = ? AND version = ?"
                " AND position <= (SELECT position FROM log_head WHERE id = 1) ORDER BY position DESC",
                (name, version),
            ).fetchall()
        return [(position, state) for position, crc, state in rows if crc32(state) == crc]

    def close(self) -> None:
        """Let go of the file. Reading afterwards raises `StoreClosed`."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _recorded(self, row: tuple[Any, ...]) -> Recorded:
        position, event_id, at, schema, writer, writer_seq, cause, codec, payload = row
        try:
            event = self._codec.decode(payload, codec, schema)
        except StoreError as error:
            raise self._explained(position, error) from error
        name = self._writers.get(writer)
        return Recorded(
            seq=position,
            id=unkey(event_id),
            at=at,
            writer=name if name is not None else self._writer_name(writer),
            writer_seq=writer_seq,
            event=event,
            cause=unkey(cause) if cause is not None else None,
            schema=schema,
        )

    def _explained(self, position: int, error: StoreError) -> StoreError:
        """Say where the trouble is and, if a release of Herd is known to understand it, which."""
        if not isinstance(error, UnknownEvent):
            return StoreError(f"position {position}: {error}")
        with self._borrowed() as connection:
            row = connection.execute(
                "SELECT name, release FROM event_types WHERE id IN (SELECT type FROM events WHERE position = :position"
                " UNION ALL SELECT type FROM telemetry WHERE position = :position)",
                {"position": position},
            ).fetchone()
        # The dictionary knows who first wrote the type; who first wrote a newer version of it, nobody noted.
        known = row and row[1] and row[0] not in self._codec.classes
        needed = f"Herd {row[1]} or later" if known else "a later release"
        return UnknownEvent(f"position {position}: {error}; read this log with {needed}")

    def _writer_name(self, writer: int) -> str:
        with self._borrowed() as connection:
            self._writers = dict(connection.execute("SELECT id, name FROM writers").fetchall())
        return self._writers[writer]

    @contextmanager
    def _borrowed(self) -> Generator["Connection"]:
        if self._closed:
            raise StoreClosed("the log is closed")
        try:
            connection = self._idle.pop()
        except IndexError:
            try:
                connection = self._connect()
            except (driver.Error, OSError) as error:
                raise StoreUnavailable(f"the log cannot be read: {error}") from error
        sound = False
        try:
            yield connection
            sound = True
        except driver.Error as error:
            raise StoreUnavailable(f"the log cannot be read: {error}") from error
        finally:
            if sound and not self._closed and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
            else:
                connection.close()


def open_readonly(path: str | Path) -> Reader:
    """Open a log for reading only, whether a router runs on it or not. Nothing is created, migrated or checkpointed.

    Raises `StoreUnavailable` where there is no log or it cannot be read, `ForeignDatabase` where it is not ours.
    """
    path = Path(path)
    try:
        found = database.revision(path, database.connect_anywhere)
    except driver.Error as error:
        raise StoreUnavailable(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        raise StoreUnavailable(f"there is no event log at {path}: start the router once, or name another directory")
    return Reader(lambda: database.connect_anywhere(path))
