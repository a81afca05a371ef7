"""How an answer ended is written in its last bytes; watching for them must cost nothing while the others pass."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from events.types import Dialect as DialectName
from events.types import Kind
from herd.wire import DIALECTS
from herd.wire.dialect import Ending

__all__ = ["Ending", "Watch", "is_answer", "whole"]

NEWLINE = 0x0A
SPACE = 0x20
"""Every white space of ASCII has this code or a smaller one."""

BLANK = b" \t\r\n"
"""What JSON takes for white space; anything else says something, if only nonsense."""

WHOLE_MAX_BYTES = 16 * 1024 * 1024
"""A line or a whole answer is kept up to this size; clients give up at 8 MB. Beyond it nothing is known of the end."""

EVENTS_TAIL_BYTES = 64 * 1024
"""The last events of a stream are looked for in so many bytes at its end."""

VECTORS_EDGE_BYTES = 16 * 1024
"""Embeddings say everything but their numbers in so many bytes at either end."""


ANSWER_TYPES = (b"application/json", b"application/x-ndjson", b"text/event-stream")
"""What every known inference server says of its answers: Ollama, llama.cpp, vLLM, LM Studio, MLX."""


def is_answer(content_type: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:
    """Whether a 200 can be the answer of an inference server, and not the login page of something between.

    One that says no type can be; one that is compressed cannot, because nobody asked for that. The names of `headers`
    are in lower case.
    """
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        return False
    return not content_type or content_type.startswith(ANSWER_TYPES) or content_type.lower().startswith(ANSWER_TYPES)


def whole(dialect: DialectName, kind: Kind, body: bytes) -> Ending | None:
    """Read how a whole answer ended; None if it is not one JSON object, which it is in every dialect."""
    return DIALECTS[dialect].total(kind, body)


class Watch:
    """Sees an answer go by in chunks of any size and tells afterwards how it ended."""

    def __init__(self, dialect: DialectName, kind: Kind, *, streaming: bool) -> None:
        self._dialect = DIALECTS[dialect]
        self._kind: Kind = kind
        self._streaming = streaming and kind != "embed"
        kept: _Keeper
        if kind == "embed":
            kept = _Edges()
        elif not streaming:
            kept = _Whole()
        else:
            kept = _Line() if self._dialect.stream == "lines" else _Tail()
        self._kept = kept
        self.feed = kept.feed
        """Look at the next chunk. It is kept by reference and only as long as it may hold the end."""

    @property
    def bytes(self) -> int:
        """How many went by."""
        return self._kept.seen

    @property
    def mid_line(self) -> bool:
        """Whether the last chunk stopped inside a line, so that an error frame must begin with a new one."""
        return self._kept.last != NEWLINE

    def ending(self) -> Ending:
        """Read the end, after the last chunk; of a broken answer it tells what can be told."""
        value = self._kept.value()
        read = self._dialect.ending if self._streaming else self._dialect.total
        return read(self._kind, value) or Ending()


class _Keeper(ABC):
    """Keeps what may hold the end. A chunk costs little here, because each token of each answer is one."""

    __slots__ = ("_chunks", "_size", "last", "seen")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        """Bytes that are kept."""
        self.seen: int = 0
        """Bytes that went by."""
        self.last: int = NEWLINE
        """The last byte."""

    @abstractmethod
    def feed(self, chunk: bytes) -> None: ...

    def value(self) -> bytes:
        return b"".join(self._chunks)


class _Whole(_Keeper):
    """Keeps everything, up to a limit."""

    __slots__ = ()

    def feed(self, chunk: bytes) -> None:
        if chunk:
            self.seen += len(chunk)
            self.last = chunk[-1]
            self._chunks.append(chunk)
            if self.seen > WHOLE_MAX_BYTES:
                self._chunks.clear()


class _Line(_Keeper):
    """Keeps the last line, which may be spread over many chunks."""

    __slots__ = ("_complete",)

    def __init__(self) -> None:
        super().__init__()
        self._complete = False
        """Whether the next chunk that says something begins a line."""

    def feed(self, chunk: bytes) -> None:
        if not chunk:
            return
        size = len(chunk)
        self.seen += size
        self.last = last = chunk[-1]
        if chunk[0] <= SPACE and not chunk.strip(BLANK):
            self._complete = self._complete or b"\n" in chunk
            return
        if self._complete or _has_line_inside(chunk, last):
            self._chunks = [chunk]
            self._size = size
        else:
            self._chunks.append(chunk)
            self._size += size
        self._complete = last == NEWLINE
        if self._size > WHOLE_MAX_BYTES:
            self._chunks.clear()

    def value(self) -> bytes:
        return super().value().strip(BLANK).rpartition(b"\n")[2]


class _Tail(_Keeper):
    """Keeps at least the last bytes, in whole chunks."""

    __slots__ = ()

    def feed(self, chunk: bytes) -> None:
        if chunk:
            self.seen += len(chunk)
            self.last = chunk[-1]
            self._chunks.append(chunk)
            self._size += len(chunk)
            if self._size > 2 * EVENTS_TAIL_BYTES:
                self._cut()

    def _cut(self) -> None:
        """Let go of what is not needed; rarely, so that it costs a chunk next to nothing."""
        needless = 0
        while self._size - len(self._chunks[needless]) >= EVENTS_TAIL_BYTES:
            self._size -= len(self._chunks[needless])
            needless += 1
        del self._chunks[:needless]


class _Edges(_Keeper):
    """Keeps both ends of an object whose middle is one long list, and returns it with the list empty.

    A batch of embeddings can have a hundred megabytes; its counters stand before the list or after it.
    """

    __slots__ = ("_head", "_tail")

    def __init__(self) -> None:
        super().__init__()
        self._head = b""
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        if chunk:
            self.seen += len(chunk)
            self.last = chunk[-1]
            if len(self._head) < VECTORS_EDGE_BYTES:
                self._head += chunk[:VECTORS_EDGE_BYTES]
            self._tail = (self._tail + chunk[-VECTORS_EDGE_BYTES:])[-VECTORS_EDGE_BYTES:]

    def value(self) -> bytes:
        if self.seen <= VECTORS_EDGE_BYTES:
            return self._tail
        before, opened, _ = self._head.partition(b"[")
        _, closed, after = self._tail.rpartition(b"]")
        return before + opened + closed + after if opened and closed else self._head


def _has_line_inside(chunk: bytes, last: int) -> bool:
    """Whether a line ends in the chunk and another begins, without a copy of the chunk."""
    end = len(chunk)
    if last <= SPACE:
        end -= 1
        if chunk[end - 1] <= SPACE:  # blank lines at the end, as events have them
            end = len(chunk.rstrip(BLANK))
    return chunk.find(b"\n", 0, end) >= 0
