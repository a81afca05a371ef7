"""Migrations run in the store's own connection and transaction, so that a database is never half migrated.

The store hands its connection over in `config.attributes["connection"]`. For `alembic` on the command line give the
database with `-x url=sqlite:////path/to/latency.db`; a router must not be running on it.

A revision's id is the number that its file name begins with (`0002_request_traces.py` has revision `0002`): a database
that is up to date is recognised by that number, without importing Alembic.
"""

import sqlalchemy as sa

from alembic import context


def migrate(connection: sa.Connection) -> None:
    """Apply what is missing, in one transaction."""
    context.configure(connection=connection, transactional_ddl=True, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if isinstance(handed_over, sa.Connection):
    migrate(handed_over)
else:
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not url:
        raise SystemExit("name the database: alembic -x url=sqlite:////path/to/latency.db …")
    engine = sa.create_engine(url)
    with engine.begin() as own:
        migrate(own)
    engine.dispose()
