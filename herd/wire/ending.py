"""How an answer ended is written in its last bytes; watching for them must cost nothing while the others pass."""

from collections import deque
from typing import Protocol

from events.types import Dialect as DialectName
from events.types import Kind
from herd.wire import DIALECTS
from herd.wire.dialect import Ending

__all__ = ["Ending", "Watch"]

WHOLE_MAX_BYTES = 16 * 1024 * 1024
"""A line or a whole answer is kept up to this size; clients give up at 8 MB. Beyond it nothing is known of the end."""

EVENTS_TAIL_BYTES = 64 * 1024
"""The last events of a stream are looked for in so many bytes at its end."""

VECTORS_EDGE_BYTES = 16 * 1024
"""Embeddings say everything but their numbers in so many bytes at either end."""


class Watch:
    """Sees an answer go by in chunks of any size and tells afterwards how it ended."""

    def __init__(self, dialect: DialectName, kind: Kind, *, streaming: bool) -> None:
        self._dialect = DIALECTS[dialect]
        self._kind: Kind = kind
        self._streaming = streaming and kind != "embed"
        self._kept: _Keeper
        if kind == "embed":
            self._kept = _Edges()
        elif not streaming:
            self._kept = _Whole()
        else:
            self._kept = _Line() if self._dialect.stream == "lines" else _Tail()
        self.bytes = 0
        """How many went by."""
        self.mid_line = False
        """Whether the last chunk stopped inside a line, so that an error frame must begin with a new one."""

    def feed(self, chunk: bytes) -> None:
        """Look at the next chunk. It is kept by reference and only as long as it may hold the end."""
        if chunk:
            self.bytes += len(chunk)
            self.mid_line = chunk[-1] != 0x0A
            self._kept.feed(chunk)

    def ending(self) -> Ending:
        """Read the end, after the last chunk; of a broken answer it tells what can be told."""
        value = self._kept.value()
        return self._dialect.ending(self._kind, value) if self._streaming else self._dialect.total(self._kind, value)


class _Keeper(Protocol):
    def feed(self, chunk: bytes) -> None: ...

    def value(self) -> bytes: ...


class _Whole:
    """Keeps everything, up to a limit."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= WHOLE_MAX_BYTES:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()

    def value(self) -> bytes:
        return b"".join(self._chunks)


class _Line:
    """Keeps the last line, which may be spread over many chunks."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._complete = False

    def feed(self, chunk: bytes) -> None:
        if chunk.isspace():
            self._complete = self._complete or b"\n" in chunk
            return
        if self._complete or b"\n" in chunk.rstrip():
            self._chunks.clear()
            self._size = 0
        self._size += len(chunk)
        if self._size <= WHOLE_MAX_BYTES:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()
        self._complete = chunk.endswith(b"\n")

    def value(self) -> bytes:
        return b"".join(self._chunks).strip().rpartition(b"\n")[2]


class _Tail:
    """Keeps at least the last bytes, in whole chunks."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= EVENTS_TAIL_BYTES:
            self._size -= len(self._chunks.popleft())

    def value(self) -> bytes:
        return b"".join(self._chunks)


class _Edges:
    """Keeps both ends of an object whose middle is one long list, and returns it with the list empty.

    A batch of embeddings can have a hundred megabytes; its counters stand before the list or after it.
    """

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if len(self._head) < VECTORS_EDGE_BYTES:
            self._head += chunk[:VECTORS_EDGE_BYTES]
        self._tail = (self._tail + chunk[-VECTORS_EDGE_BYTES:])[-VECTORS_EDGE_BYTES:]

    def value(self) -> bytes:
        if self._size <= VECTORS_EDGE_BYTES:
            return self._tail
        before, opened, _ = self._head.partition(b"[")
        _, closed, after = self._tail.rpartition(b"]")
        return before + opened + closed + after if opened and closed else self._head
