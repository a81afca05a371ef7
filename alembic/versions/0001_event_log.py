"""The log, its dictionaries, its fence, and the bookkeeping of the views."""

import sqlalchemy as sa

from alembic import op

revision: str = "0001"
down_revision: str | None = None

#: SQLite's row id, and therefore free, only if it is spelt INTEGER.
_POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables. No index on type, time or stream: each would cost a fifth of the append rate."""
    op.create_table(
        "event_types",
        sa.Column("id", sa.SmallInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("release", sa.Text, nullable=False),  # that first wrote it: what an older release needs to read it
    )
    op.create_table(
        "writers",
        sa.Column("id", sa.SmallInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("writer_seq", sa.BigInteger, nullable=False),  # as of its last start; log_head has the current one's
    )
    for table, unique in (("events", True), ("telemetry", False)):
        op.create_table(
            table,
            sa.Column("position", _POSITION, primary_key=True, autoincrement=False),
            sa.Column("event_id", sa.LargeBinary, nullable=False, unique=unique),
            sa.Column("at", sa.BigInteger, nullable=False),  # nanoseconds since the epoch
            sa.Column("type", sa.SmallInteger, nullable=False),
            sa.Column("schema", sa.SmallInteger, nullable=False),
            sa.Column("writer", sa.SmallInteger, nullable=False),
            sa.Column("writer_seq", sa.BigInteger, nullable=False),
            sa.Column("stream", sa.Text, nullable=False),
            sa.Column("cause", sa.LargeBinary, nullable=True),
            sa.Column("codec", sa.SmallInteger, nullable=False),  # 0 JSON, 1 MessagePack
            sa.Column("payload", sa.LargeBinary, nullable=False),
        )
    head = op.create_table(
        "log_head",
        sa.Column("id", sa.SmallInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),  # raised by each writer at its start; an older one is fenced
        sa.Column("writer", sa.SmallInteger, nullable=False),
        sa.Column("writer_seq", sa.BigInteger, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),  # nanoseconds since the epoch
    )
    op.bulk_insert(
        head, [{"id": 1, "position": 0, "epoch": 0, "writer": 0, "writer_seq": 0, "pid": 0, "updated_at": 0}]
    )
    op.create_table(
        "checkpoints",
        sa.Column("projection", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "snapshots",
        sa.Column("projection", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("crc32", sa.BigInteger, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Drop the log. There is nothing before it."""
    for table in ("snapshots", "checkpoints", "log_head", "telemetry", "events", "writers", "event_types"):
        op.drop_table(table)
