"""The request table moves in the transaction that appends to the log, so no row is ever missing, early or double."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import msgspec
from msgspec.structs import astuple

from events.recorded import Recorded
from events.sqlite.database import connect_anywhere
from projections.traces import NAME, VERSION, Status, Trace, Traces, fold

#: Rows of one INSERT: a statement for each row would take and drop the interpreter lock once for each.
ROWS_MAX = 32
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
_ONE_ROW = f"({', '.join('?' * len(_COLUMNS))})"
#: Columns that hold JSON, and what their NULL means.
_JSON = {"scores_breakdown": "{}", "excluded_nodes": "[]", "tags": "[]"}


class Cursor(Protocol):
    """The part of a DBAPI cursor that is used here."""

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
        self._state = Traces()
        self._before = Traces()

    def start(self, cursor: Cursor, head: int, read: Callable[[int], Iterator[Recorded]]) -> None:
        """Catch up with the log; rebuild the table where it is missing, of another version, or ahead of the log."""
        cursor.execute("SELECT position, low FROM checkpoints WHERE projection = ? AND version = ?", (NAME, VERSION))
        position, low = cursor.fetchone() or (head + 1, 1)
        if position > head:
            cursor.execute(f"DELETE FROM {NAME}")
            cursor.execute("DELETE FROM checkpoints WHERE projection = ?", (NAME,))
            position, low = 0, 1
        state = Traces(seq=low - 1)
        rows: list[Row] = []
        for recorded in read(low - 1):
            state, finals = fold(state, recorded)
            if recorded.seq > position:
                rows.extend(map(to_row, finals))
            if len(rows) >= ROWS_MAX:
                _insert(cursor, rows)
                rows.clear()
        _insert(cursor, rows)
        self._state = self._before = Traces(seq=head, open=state.open)
        _check_in(cursor, self._state)

    def apply(self, cursor: Cursor, batch: Sequence[Recorded]) -> None:
        """Write the rows that these events make final, and the new position."""
        if not batch:
            return
        # A batch that comes again was rolled back the first time. Nothing needs undoing: the state before it is kept.
        before = self._state if batch[0].seq > self._state.seq else self._before
        assert batch[0].seq > before.seq
        state = before
        rows: list[Row] = []
        for recorded in batch:
            state, finals = fold(state, recorded)
            rows.extend(map(to_row, finals))
        self._before, self._state = before, state
        _insert(cursor, rows)
        _check_in(cursor, state)

    def recent(self, limit: int = 50, **filters: Unpack[Filters]) -> list[Trace]:
        """Return the newest rows that match, newest first (see `recent`). Blocks on I/O; any thread may ask."""
        with closing(connect_anywhere(self._path)) as connection:
            return recent(connection, limit, **filters)


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
    for column in _JSON:
        at = _INDEX[column]
        row[at] = msgspec.json.encode(row[at]).decode() if row[at] else None
    row[_INDEX["fallback_used"]] = int(trace.fallback_used)
    return tuple(row)


_INDEX = {column: at for at, column in enumerate(_COLUMNS)}


def _from_row(row: Row) -> Trace:
    values = dict(zip(_COLUMNS, row, strict=True))
    for column, empty in _JSON.items():
        values[column] = msgspec.json.decode(values[column] or empty)
    return msgspec.convert(values, Trace, strict=False)


def _fetched(cursor: Cursor) -> Iterator[Row]:
    while rows := cursor.fetchmany(1000):
        yield from rows


def _insert(cursor: Cursor, rows: list[Row]) -> None:
    for first in range(0, len(rows), ROWS_MAX):
        chunk = rows[first : first + ROWS_MAX]
        sql = f"INSERT INTO {NAME} ({_LIST}) VALUES {', '.join([_ONE_ROW] * len(chunk))}"
        cursor.execute(sql, [value for row in chunk for value in row])


def _check_in(cursor: Cursor, state: Traces) -> None:
    cursor.execute(
        "INSERT INTO checkpoints (projection, version, position, low) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (projection, version) DO UPDATE SET position = excluded.position, low = excluded.low",
        (NAME, VERSION, state.seq, state.low),
    )
