"""An event is one row of one table: how it becomes one, at a cost that the router's interpreter lock can bear.

Binding a bytes object or None takes SQLite's Python drivers 1.2 µs, a bytearray or an int 0.1 µs (they look for an
adapter for every type but four); so blobs are bytearrays here and a missing cause is an empty one.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import msgspec

from events.codec import Codec, tag
from events.recorded import Recorded
from events.types import Event, LogInterrupted

if TYPE_CHECKING:
    from sqlite3 import Cursor

#: Rows of one statement. `executemany` would take and drop the interpreter lock for every row.
ROWS_MAX = 128

_COLUMNS = "position, event_id, at, type, schema, writer_seq, stream, cause, codec, payload, writer"
_WIDTH = 10  # the writer's id is written into the statement

_NOTHING = bytearray()


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that is ready to be written, as often as it takes."""

    batch: list[Recorded]
    """What is written: an event that cannot be encoded has been replaced by the statement that it is lost."""
    events: list[Any]
    """Values of all rows for the table `events`, flat."""
    telemetry: list[Any]
    lost: dict[int, str]
    """Positions of the events that have been replaced, and why."""


class Inserter:
    """Turns events into rows for one writer."""

    def __init__(self, codec: Codec, writer: int, types: dict[str, int]) -> None:
        self._codec = codec
        self._types = types
        self._classes: dict[type[Event], tuple[int, bool]] = {}
        self._new_types: list[tuple[int, str]] = []
        row = f"(?,?,?,?,?,?,?,NULLIF(?,x''),?,?,{writer})"
        self._statements = {
            (table, 1 << power): f"INSERT INTO {table} ({_COLUMNS}) VALUES " + ",".join([row] * (1 << power))
            for table in ("events", "telemetry")
            for power in range(ROWS_MAX.bit_length())
        }

    def prepare(self, batch: list[Recorded], explicit: set[int]) -> Prepared:
        """Encode a batch. Telemetry among `explicit` goes where ids are unique."""
        rows: list[Any] = []
        readings: list[Any] = []
        done: list[Recorded] = []
        lost: dict[int, str] = {}
        encode, classes = self._codec.encode, self._classes
        cause, packed_cause = None, _NOTHING
        for recorded in batch:
            try:
                codec, payload = encode(recorded.event)
            except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
                statement = unwritable(recorded.event, recorded.at, error)
                lost[recorded.seq] = statement.why
                recorded = msgspec.structs.replace(recorded, event=statement, schema=statement.schema)
                codec, payload = encode(recorded.event)
            event = recorded.event
            type_id, telemetry = classes.get(event.__class__) or self._learn(event.__class__)
            given = bool(explicit) and recorded.seq in explicit
            if recorded.cause != cause:  # mostly that of the event before
                cause = recorded.cause
                packed_cause = key(cause) if cause else _NOTHING
            (readings if telemetry and not given else rows).extend(
                (
                    recorded.seq,
                    key(recorded.id) if given else bytearray.fromhex(recorded.id),
                    recorded.at,
                    type_id,
                    recorded.schema,
                    recorded.writer_seq,
                    event.stream,
                    packed_cause,
                    codec,
                    payload,
                )
            )
            done.append(recorded)
        return Prepared(batch=done, events=rows, telemetry=readings, lost=lost)

    def write(self, cursor: "Cursor", prepared: Prepared) -> None:
        """Insert the rows, inside the caller's transaction."""
        for type_id, name in self._new_types:
            values = (type_id, name, release())
            cursor.execute("INSERT OR IGNORE INTO event_types (id, name, release) VALUES (?, ?, ?)", values)
        self._insert(cursor, "events", prepared.events)
        self._insert(cursor, "telemetry", prepared.telemetry)

    def written(self) -> None:
        """The transaction is committed: new types need not be announced again."""
        self._new_types.clear()

    def _insert(self, cursor: "Cursor", table: str, values: list[Any]) -> None:
        start, left = 0, len(values) // _WIDTH
        while left:
            rows = ROWS_MAX if left >= ROWS_MAX else 1 << (left.bit_length() - 1)
            end = start + rows * _WIDTH
            cursor.execute(self._statements[table, rows], values[start:end])
            start, left = end, left - rows

    def _learn(self, cls: type[Event]) -> tuple[int, bool]:
        name = tag(cls)
        type_id = self._types.get(name)
        if type_id is None:
            type_id = self._types[name] = max(self._types.values(), default=0) + 1
            self._new_types.append((type_id, name))
        known = self._classes[cls] = (type_id, cls.telemetry)
        return known


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to read."""

    types: Sequence[type[Event]] | None = None
    stream: str | None = None
    backwards: bool = False

    def statement(self) -> str:
        """Return the query for one page: parameters `after`, `until`, `limit`, and `stream` if it is given."""
        where = "position > :after AND position <= :until"
        if self.types is not None:
            names = ", ".join(f"'{tag(cls)}'" for cls in self.types)
            where += f" AND type IN (SELECT id FROM event_types WHERE name IN ({names}))"
        if self.stream is not None:
            where += " AND stream = :stream"
        parts = [f"SELECT {READ_COLUMNS} FROM {table} WHERE {where}" for table in self._tables()]
        order = "DESC" if self.backwards else "ASC"
        return f"{' UNION ALL '.join(parts)} ORDER BY position {order} LIMIT :limit"

    def _tables(self) -> tuple[str, ...]:
        # Readings are most of the volume: who asks for decisions only must not scan them.
        if self.types is not None and not any(cls.telemetry for cls in self.types):
            return ("events",)
        return ("events", "telemetry")


READ_COLUMNS = "position, event_id, at, schema, writer, writer_seq, cause, codec, payload"


def key(name: str) -> bytearray | str:
    """Return an id as it is stored: 16 bytes for a UUID in hex, the text itself for anything else."""
    try:
        packed = bytearray.fromhex(name)
    except ValueError:
        return name
    return packed if packed.hex() == name else name


def unkey(stored: bytes | str) -> str:
    """Return the id that `key` stored."""
    return stored if isinstance(stored, str) else stored.hex()


def unwritable(event: Event, at: int, error: Exception) -> LogInterrupted:
    """Return what takes the place of an event that no codec can write: the fact that it is lost, and why."""
    return LogInterrupted(
        lost=1,
        since=at,
        until=at,
        why=f"{tag(event.__class__)} could not be encoded: {error.__class__.__name__}",
    )


def release() -> str:
    """Return the version of Herd that runs; empty in a checkout that was never installed."""
    try:
        return version("herd")
    except PackageNotFoundError:
        return ""
