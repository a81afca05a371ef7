"""Opening a file decides what may happen to it later: whose it is, who may write it, and how safely."""

import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from events import migrations
from events.sqlite import driver
from events.store import ForeignDatabase, StoreDamaged, StoreUnavailable

if TYPE_CHECKING:
    from sqlite3 import Connection

Durability = Literal["full", "normal"]

#: How long a statement waits for another process that holds the database, such as somebody's `sqlite3` shell.
BUSY_TIMEOUT_S = 5.0

#: The write-ahead log file is cut back to this size when it is reset.
_WAL_KEEP_BYTES = 64 * 1024 * 1024

#: Tables without which a database is not one of our logs.
_OURS = {"alembic_version", "events", "telemetry", "log_head"}

#: Tables that hold nothing that is not in the others (but for views kept after a loss, which only serve its proof).
_DERIVED = ("checkpoints", "snapshots", "request_traces")

_DAMAGED = "Restore it from a backup, or move it away (with its -wal file) to begin a new log."


class Pin:
    """Holds the name of a database that is being written to the file that it meant when it was opened.

    SQLite goes by names. A connection that is opened after the file was replaced takes the lock table of the old one
    for its own and cuts it back under those who have it mapped (the process dies of a bus error), or it reads another
    log; and commits to a file that has lost its name succeed, and are gone at the next start.
    """

    def __init__(self, path: Path) -> None:
        """Pin the database and, where there is one, its write-ahead log. Raises OSError where there is no file."""
        self._place = _place(path)
        self._found = {
            name: identity
            for name in (self._place, f"{self._place}-wal")
            if (identity := _identity(name)) is not None or name == self._place
        }
        _pins[self._place] = self

    def check(self) -> None:
        """Raise OSError unless the files are still those that were pinned."""
        for name, identity in self._found.items():
            now = _identity(name)
            if now != identity:
                what = "removed" if now is None else "replaced"
                raise OSError(f"{name} was {what} while the router runs: restart it")

    def release(self) -> None:
        """Let the name mean what it will."""
        if _pins.get(self._place) is self:
            del _pins[self._place]


_pins: dict[str, Pin] = {}


def _place(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - asked at each commit, and a tenth of what `Path.resolve` takes


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)  # noqa: PTH116 - as above
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def connect_writer(path: Path, durability: Durability) -> "Connection":
    """Return the connection that writes. It must be the only one, and it alone checkpoints."""
    connection = _connect(path, "rw")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={durability.upper()}")
    connection.execute("PRAGMA fullfsync=ON")  # macOS: an ordinary fsync leaves the data in the drive's cache
    # SQLite would checkpoint inside a commit, that is before the acknowledgement: 14 times the 99.9th percentile.
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_KEEP_BYTES}")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def connect_reader(path: Path) -> "Connection":
    """Return a connection that can neither write nor checkpoint. Raises `driver.Error`, and OSError as `Pin.check`."""
    connection = _connect(path, "ro")
    connection.execute("PRAGMA query_only=ON")
    return connection


def connect_anywhere(path: Path) -> "Connection":
    """Return a reading connection, also from a directory in which nothing can be created. Raises `driver.Error`.

    Reading needs a file for its locks, and a read-only directory may lack it; but there nobody writes either.
    """
    connection = connect_reader(path)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except driver.Error as error:
        connection.close()
        if not driver.is_refusal(error):
            raise
        connection = connect_archive(path)
    return connection


def connect_archive(path: Path) -> "Connection":
    """Return a reading connection for a place where nothing can be created, not even the locks that reading takes.

    Only right while nobody writes the file; what lies in a write-ahead log beside it is not seen.
    """
    return _connect(path, "ro&immutable=1")


def prepare(path: Path, scripts: Path | None) -> None:
    """Make sure that the file is a log with the newest schema: create it, migrate it, or refuse it untouched.

    Raises `ForeignDatabase`, `StoreDamaged` and `StoreUnavailable`.
    """
    scripts = scripts or migrations.scripts_home()
    known = migrations.revisions(scripts)
    found = revision(path)
    if found is not None and found not in known:
        raise StoreUnavailable(f"a later release of Herd made {path} (revision {found}): install that one")
    if found != known[-1]:
        _migrate(path, scripts, new=found is None)
    else:
        _complete(path, scripts)


def _guess(tables: AbstractSet[str]) -> str:
    return ", probably ollama-herd" if "request_traces" in tables else ""


def revision(path: Path, connect: Callable[[Path], "Connection"] = connect_reader) -> str | None:
    """Return the schema revision of a log, None where there is no file or an empty one.

    Raises `ForeignDatabase` and `StoreDamaged`.
    """
    try:
        if path.stat().st_size == 0:
            return None
    except FileNotFoundError:
        return None
    try:
        with closing(connect(path)) as connection:
            tables = _schema(connection)
            if not tables:
                return None
            if not tables >= _OURS:
                raise ForeignDatabase(
                    f"{path} is the database of another program{_guess(tables)} (it has the tables "
                    f"{', '.join(sorted(tables)[:6])}). It was left as it is."
                )
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if found is None:
                raise StoreDamaged(f"{path} does not say its revision (the table alembic_version is empty). {_DAMAGED}")
            return found[0]
    except driver.Error as error:
        if driver.is_machine_trouble(error) and "not a database" not in str(error):
            raise
        raise ForeignDatabase(f"{path} is not an event log ({error}). It was left as it is.") from error


def _connect(path: Path, mode: str) -> "Connection":
    pin = _pins.get(_place(path))
    if pin is not None:
        pin.check()
    # Never "rwc": a file that vanished while we ran must not come back empty.
    return driver.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_S,
        cached_statements=64,
    )


def _migrate(path: Path, scripts: Path, *, new: bool) -> None:
    # SQLAlchemy takes longer to import than a start takes, and most starts have nothing to migrate.
    import sqlalchemy as sa  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    try:
        path.touch()
    except OSError as error:
        raise StoreUnavailable(f"cannot write {path}: {error.strerror}") from error
    raw = _connect(path, "rw")
    if new:
        raw.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only heard before the first table exists
    raw.execute("PRAGMA journal_mode=WAL")
    engine = sa.create_engine("sqlite://", module=driver.module, creator=lambda: raw, poolclass=sa.pool.StaticPool)
    try:
        with engine.connect() as connection:
            # The driver would begin no transaction for DDL by itself, and a killed migration must leave nothing.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            migrations.upgrade(connection, scripts)
            connection.commit()
    except DBAPIError as error:
        raise (error.orig or error) from error  # in the driver's words, as every other trouble with the file
    finally:
        engine.dispose()
        raw.close()


def _complete(path: Path, scripts: Path) -> None:
    """Make again what was dropped and can be filled from the log: the views, what is noted about them, and indexes."""
    with closing(connect_reader(path)) as connection:
        present = _schema(connection)
    lacking = [name for name in _DERIVED if name not in present]
    if not lacking:
        return
    with TemporaryDirectory() as directory:
        model = Path(directory) / "model.db"
        _migrate(model, scripts, new=True)
        with closing(connect_reader(model)) as connection:
            wanted = connection.execute("SELECT tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    with closing(_connect(path, "rw")) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, sql in wanted:
            if table in lacking:
                connection.execute(sql)
        if "checkpoints" not in lacking:
            connection.executemany("DELETE FROM checkpoints WHERE projection = ?", [(name,) for name in lacking])


def _schema(connection: "Connection") -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def holder(path: Path) -> int:
    """Return the process id of the last router that opened the log for writing; 0 if that cannot be read."""
    try:
        with closing(connect_reader(path)) as connection:
            (pid,) = connection.execute("SELECT pid FROM log_head WHERE id = 1").fetchone()
            return pid
    except (driver.Error, OSError, TypeError):
        return 0


def head_of(row: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the row of `log_head`. Raises `StoreDamaged` where there is none."""
    if row is None:
        raise StoreDamaged(f"the log does not say where it ends (the table log_head is empty). {_DAMAGED}")
    return row
