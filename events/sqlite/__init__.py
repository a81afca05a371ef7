"""The embedded log: one SQLite file, one writer thread, nothing to install and nothing to administer."""

from events.sqlite.reader import Reader, open_readonly
from events.sqlite.store import SQLiteStore

__all__ = ["Reader", "SQLiteStore", "open_readonly"]
