"""The log is the only thing that remembers: what can happen, in which order it did, and where that is kept.

The stores are not imported here, because the node agent needs the vocabulary and no database:
`events.memory.MemoryStore`, `events.sqlite.SQLiteStore`, `events.sqlite.open_readonly`; `events.jsonl` for files.
"""

from events.clock import Clock, ManualClock, SystemClock
from events.recorded import Recorded
from events.store import (
    EventStore,
    ForeignDatabase,
    InlineProjection,
    StoreClosed,
    StoreError,
    StoreInUse,
    StoreState,
    StoreUnavailable,
    UnknownEvent,
)
from events.types import Event

__all__ = [
    "Clock",
    "Event",
    "EventStore",
    "ForeignDatabase",
    "InlineProjection",
    "ManualClock",
    "Recorded",
    "StoreClosed",
    "StoreError",
    "StoreInUse",
    "StoreState",
    "StoreUnavailable",
    "SystemClock",
    "UnknownEvent",
]
