"""Users query `request_traces` by hand and by script: the columns and indexes are those of ollama-herd, exactly."""

import sqlalchemy as sa

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"

TABLE = "request_traces"

#: REAL is eight bytes in SQLite and four in PostgreSQL, too few for a time.
REAL = sa.Double[float]().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    """Make the table, empty: the projection fills it from the log at the next start."""
    op.create_table(
        TABLE,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("original_model", sa.Text, nullable=False),
        sa.Column("node_id", sa.Text, nullable=False),
        sa.Column("score", REAL),
        sa.Column("scores_breakdown", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("latency_ms", REAL),
        sa.Column("time_to_first_token_ms", REAL),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("retry_count", sa.Integer, server_default=sa.text("0")),
        sa.Column("fallback_used", sa.Integer, server_default=sa.text("0")),
        sa.Column("excluded_nodes", sa.Text),
        sa.Column("client_ip", sa.Text),
        sa.Column("original_format", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("timestamp", REAL, nullable=False),
        sa.Column("tags", sa.Text),
        sa.Column("finish_reason", sa.Text),
        sa.Column("estimated_tokens", sa.Integer),
        sqlite_autoincrement=True,
    )
    # Position of the oldest event that a view still needs: the beginning of the oldest request that was open.
    op.add_column("checkpoints", sa.Column("low", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("idx_traces_request_id", TABLE, ["request_id"])
    op.create_index("idx_traces_timestamp", TABLE, ["timestamp"])
    op.create_index("idx_traces_model_timestamp", TABLE, ["model", "timestamp"])
    op.create_index("idx_traces_node_model", TABLE, ["node_id", "model"])
    op.create_index("idx_traces_tags", TABLE, ["tags"])


def downgrade() -> None:
    """Drop the table; the log keeps everything that was in it."""
    op.drop_table(TABLE)
    op.drop_column("checkpoints", "low")
    op.execute(sa.text("DELETE FROM checkpoints WHERE projection = 'request_traces'"))
