"""SQLite before 3.51.3 can corrupt a log that is reset while it is checkpointed, so the newest build at hand is used.

`pysqlite3` brings its own SQLite; the standard library has the system's, which is years behind on stable distributions.
It has no type stubs but the standard library's interface, so its types are declared here and nowhere else.

Everything in a process that opens the database must come through here: two copies of SQLite in one process on one file
drop each other's locks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable


def _choose() -> Any:
    try:
        return import_module("pysqlite3.dbapi2")
    except ImportError:
        return import_module("sqlite3")


module: Any = _choose()
"""The DBAPI module, for SQLAlchemy."""

connect: "Callable[..., sqlite3.Connection]" = module.connect
Error: "type[sqlite3.Error]" = module.Error
DatabaseError: "type[sqlite3.DatabaseError]" = module.DatabaseError
version: str = module.sqlite_version

#: Primary result codes of SQLite that speak of the machine and not of the statement.
_MACHINE = {
    5: "BUSY",
    6: "LOCKED",
    7: "NOMEM",
    8: "READONLY",
    9: "INTERRUPT",
    10: "IOERR",
    11: "CORRUPT",
    13: "FULL",
    14: "CANTOPEN",
    15: "PROTOCOL",
    22: "NOLFS",
    26: "NOTADB",
}


def is_refusal(error: Exception) -> bool:
    """Whether the file system does not let us write, or not even open."""
    return _code(error) in (8, 14)


def is_machine_trouble(error: Exception) -> bool:
    """Whether trying again later can help: disk full, locked, unreadable; not a wrong statement."""
    return _code(error) in _MACHINE or isinstance(error, OSError | MemoryError)


def _code(error: Exception) -> int:
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF if isinstance(error, Error) else 0
