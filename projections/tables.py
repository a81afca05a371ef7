"""The request table follows the log in transactions that hold rows and position, so no row is ever early or double."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack, cast

import msgspec
from msgspec.structs import astuple

from events.recorded import Recorded
from events.sqlite import driver
from events.sqlite.database import connect_anywhere
from events.store import Read, StoreUnavailable
from projections.traces import FOLDED, NAME, VERSION, Open, Status, Trace, low, step

if TYPE_CHECKING:
    from events.types import RequestEvent

#: Rows of one INSERT: a statement for each row would take and drop the interpreter lock once for each.
ROWS_MAX = 64
#: Entries that one call of `recent` returns at most.
RECENT_MAX = 1000

Row = tuple[Any, ...]

_COLUMNS = Trace.__struct_fields__
_LIST = ", ".join(_COLUMNS)
_CLAUSES = {
    "status": "status = ?",
    "model": "model = ?",
    "node": "node_id = ?",
    "request": "request_id = ?",
    "tag": "EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)",
    "since_s": "timestamp >= ?",
    "before_s": "timestamp < ?",
}
_FOLDED = frozenset(FOLDED)
#: Python's drivers take ten times as long to bind None as to bind an empty bytearray, and three columns of an ordinary
#: row are NULL.
_ONE_ROW = "(" + ", ".join(["NULLIF(?,x'')"] * len(_COLUMNS)) + ")"
#: Statements by the power of two that is their number of rows.
_STATEMENTS = [
    f"INSERT INTO {NAME} ({_LIST}) VALUES " + ", ".join([_ONE_ROW] * (1 << power))
    for power in range(ROWS_MAX.bit_length())
]
_NULL = bytearray()
#: Columns that hold JSON, and what their NULL means.
_JSON = {"scores_breakdown": "{}", "excluded_nodes": "[]", "tags": "[]"}


class Cursor(Protocol):
    """The part of a DBAPI cursor that is used here."""

    @property
    def rowcount(self) -> int:
        """How many rows the last statement changed."""
        ...

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any:
        """Run one statement."""
        ...

    def fetchone(self) -> Row | None:
        """Return the next row, or None."""
        ...

    def fetchmany(self, size: int = ..., /) -> list[Row]:
        """Return the next rows, or none."""
        ...


class Connection(Protocol):
    """The part of a DBAPI connection that is used here: `sqlite3`, `pysqlite3` and their like."""

    def cursor(self) -> Cursor:
        """Return a cursor."""
        ...


class Filters(TypedDict, total=False):
    """What `recent` can be asked for; None is no condition."""

    status: Status | None
    model: str | None
    """Canonical name of the model that was used."""
    node: str | None
    request: str | None
    tag: str | None
    since_s: float | None
    """Seconds since the epoch; rows that ended then or later."""
    before_s: float | None
    """Seconds since the epoch; rows that ended earlier."""


class TraceTable:
    """Keeps `request_traces` for a store (an `InlineProjection`), and reads it for everybody else in the process."""

    name = NAME

    def __init__(self, path: Path) -> None:
        """`path` is the store's database; nothing is opened yet."""
        self._path = path
        self._open: dict[str, Open] = {}
        self._seq = 0
        """Position of the last event that was followed."""
        self._written = 0
        """Position that the table has reached."""
        self._rows: list[Row] = []

    def start(self, cursor: Cursor, head: int, read: Read) -> None:
        """Catch up with the log; rebuild the table where it is missing, of another version, or ahead of the log."""
        cursor.execute("SELECT position, low FROM checkpoints WHERE projection = ? AND version = ?", (NAME, VERSION))
        position, first = cursor.fetchone() or (head + 1, 1)
        if position > head:
            cursor.execute(f"DELETE FROM {NAME}")
            cursor.execute("DELETE FROM checkpoints WHERE projection = ?", (NAME,))
            position, first = 0, 1
        self._open.clear()
        self._rows.clear()
        for recorded in read(first - 1, types=FOLDED):
            finals = self._step(recorded)
            if recorded.seq > position:
                self._rows.extend(map(to_row, finals))
            if len(self._rows) >= ROWS_MAX:
                _insert(cursor, self._rows)
                self._rows.clear()
        _insert(cursor, self._rows)
        self._rows.clear()
        self._seq = self._written = head
        cursor.execute(
            "INSERT INTO checkpoints (projection, version, position, low) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (projection, version) DO UPDATE SET position = excluded.position, low = excluded.low",
            (NAME, VERSION, head, low(self._open, head)),
        )

    def follow(self, batch: Sequence[Recorded]) -> bool:
        """Take events that are about to be stored; return whether rows wait to be written."""
        for recorded in batch:
            if recorded.event.__class__ in _FOLDED:
                for final in self._step(recorded):
                    self._rows.append(to_row(final))
        self._seq = batch[-1].seq
        return bool(self._rows)

    def write(self, cursor: Cursor) -> None:
        """Write the rows that wait and the new position, unless they are there already."""
        cursor.execute(
            "UPDATE checkpoints SET position = ?, low = ? WHERE projection = ? AND version = ? AND position = ?",
            (self._seq, low(self._open, self._seq), NAME, VERSION, self._written),
        )
        if cursor.rowcount == 1:
            _insert(cursor, self._rows)
            return
        # A commit that was reported as failed may have happened.
        cursor.execute("SELECT position FROM checkpoints WHERE projection = ? AND version = ?", (NAME, VERSION))
        if cursor.fetchone() != (self._seq,):
            raise RuntimeError(f"somebody else has changed the position of {NAME}")

    def written(self) -> None:
        """Forget what `write` wrote, now that it is stored."""
        self._rows.clear()
        self._written = self._seq

    def _step(self, recorded: Recorded) -> tuple[Trace, ...]:
        request: str = cast("RequestEvent", recorded.event).request
        now, finals = step(self._open.get(request), recorded)
        if now is not None:
            self._open[request] = now
        else:
            self._open.pop(request, None)
        return finals

    def recent(self, limit: int = 50, **filters: Unpack[Filters]) -> list[Trace]:
        """Return the newest rows that match, newest first (see `recent`). Blocks on I/O; any thread may ask.

        Raises `StoreUnavailable` when they cannot be read.
        """
        try:
            with closing(connect_anywhere(self._path)) as connection:
                return recent(connection, limit, **filters)
        except (driver.Error, OSError) as error:
            raise StoreUnavailable(f"{NAME} cannot be read: {error}") from error


def recent(connection: Connection, limit: int = 50, **filters: Unpack[Filters]) -> list[Trace]:
    """Return the newest rows that match all filters, newest first; `limit` is held between 1 and 1000."""
    given = {_CLAUSES[name]: value for name, value in filters.items() if value is not None}
    where = f"WHERE {' AND '.join(given)}" if given else ""
    sql = f"SELECT {_LIST} FROM {NAME} {where} ORDER BY timestamp DESC, id DESC LIMIT ?"
    cursor = connection.cursor()
    cursor.execute(sql, (*given.values(), max(1, min(limit, RECENT_MAX))))
    return [_from_row(row) for row in _fetched(cursor)]


def reached(connection: Connection) -> int:
    """Return the position in the log that the table has reached; 0 if it was never written."""
    cursor = connection.cursor()
    cursor.execute("SELECT position FROM checkpoints WHERE projection = ? AND version = ?", (NAME, VERSION))
    row = cursor.fetchone()
    return row[0] if row is not None else 0


def stored(connection: Connection) -> Iterator[Row]:
    """Yield all rows in the order in which they were written, as `to_row` makes them."""
    cursor = connection.cursor()
    cursor.execute(f"SELECT {_LIST} FROM {NAME} ORDER BY id")
    yield from _fetched(cursor)


def to_row(trace: Trace) -> Row:
    """Return a trace as the values of its columns."""
    row = list(astuple(trace))
    for at in _JSON_AT:
        row[at] = _encode(row[at]).decode() if row[at] else None
    row[_FALLBACK_AT] = int(trace.fallback_used)
    return tuple(row)


_encode = msgspec.json.Encoder().encode
_JSON_AT = [_COLUMNS.index(column) for column in _JSON]
_FALLBACK_AT = _COLUMNS.index("fallback_used")


def _from_row(row: Row) -> Trace:
    values = dict(zip(_COLUMNS, row, strict=True))
    for column, empty in _JSON.items():
        values[column] = msgspec.json.decode(values[column] or empty)
    return msgspec.convert(values, Trace, strict=False)


def _fetched(cursor: Cursor) -> Iterator[Row]:
    while rows := cursor.fetchmany(1000):
        yield from rows


def _insert(cursor: Cursor, rows: list[Row]) -> None:
    first, left = 0, len(rows)
    while left:
        power = min(left.bit_length() - 1, ROWS_MAX.bit_length() - 1)
        chunk = rows[first : first + (1 << power)]
        cursor.execute(_STATEMENTS[power], [_NULL if value is None else value for row in chunk for value in row])
        first, left = first + len(chunk), left - len(chunk)
