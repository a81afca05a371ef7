"""Taking a log over ends whoever wrote it before: from then on the former writer's commits find another epoch."""

import os
from typing import TYPE_CHECKING

import msgspec

from events.sqlite import database

if TYPE_CHECKING:
    from sqlite3 import Connection


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer finds when it takes the log over."""

    epoch: int
    head: int
    """Position of the last stored event."""
    at: int
    """Its time, nanoseconds since the epoch."""
    writer: int
    """Our number in the dictionary of writers."""
    writer_seq: int
    """Our own last position; 0 for a new writer."""
    types: dict[str, int]


def take_over(connection: "Connection", name: str) -> Claim:
    """Fence former writers and return where to go on, in one transaction. Raises `StoreDamaged`."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        found = cursor.execute("SELECT position, epoch FROM log_head WHERE id = 1").fetchone()
        head, epoch = database.head_of(found)
        # While a writer is at work its count stands in log_head alone, so that a commit touches one row less.
        cursor.execute(
            "UPDATE writers SET writer_seq = log_head.writer_seq FROM log_head WHERE writers.id = log_head.writer"
        )
        cursor.execute(
            "INSERT OR IGNORE INTO writers (id, name, writer_seq)"
            " VALUES ((SELECT coalesce(max(id), 0) + 1 FROM writers), ?, 0)",
            (name,),
        )
        writer, writer_seq = cursor.execute("SELECT id, writer_seq FROM writers WHERE name = ?", (name,)).fetchone()
        cursor.execute(
            "UPDATE log_head SET epoch = ?, writer = ?, writer_seq = ?, pid = ? WHERE id = 1",
            (epoch + 1, writer, writer_seq, os.getpid()),
        )
        last = cursor.execute(
            "SELECT at FROM events WHERE position = :head UNION ALL SELECT at FROM telemetry WHERE position = :head",
            {"head": head},
        ).fetchone()
        types = dict(cursor.execute("SELECT name, id FROM event_types").fetchall())
        cursor.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.rollback()
    return Claim(
        epoch=epoch + 1, head=head, at=last[0] if last else 0, writer=writer, writer_seq=writer_seq, types=types
    )
