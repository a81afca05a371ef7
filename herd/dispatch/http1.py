"""A general HTTP client is most of what a proxied request costs, so Herd speaks as much HTTP/1.1 as nodes need, itself.

A `Connection` carries one request at a time. Its `Answer` is the mailbox between the event loop, which puts in what the
node sends, and the one task that reads. Whatever is odd around a whole answer (bytes after its end, an answer before
the request was sent) costs the connection; whatever is odd within it fails the answer.
"""

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from typing import cast

import httptools

from herd.dispatch.outbox import Outbox
from herd.errors import NodeTimeout, NodeUnreachable, UpstreamError

Headers = Sequence[tuple[bytes, bytes]]
Body = bytes | bytearray | memoryview

HEAD_MAX_BYTES = 64 * 1024  # of an answer's head, and of any framing that brings no body
UNREAD_MAX_BYTES = 1024 * 1024  # more than this unread, and the node has to wait
JOIN_MAX_BYTES = 64 * 1024  # up to here one copy is cheaper than a second system call and packet
SLICE_BYTES = 256 * 1024

_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding"))
_NOTHING = memoryview(b"")


def request_head(method: str, target: str, host: bytes, headers: Headers, size: int) -> bytes:
    """Return the head of a request whose body has `size` bytes.

    Raises `ValueError` when any part holds CR, LF or NUL, when method or target holds a space, or when `headers` would
    decide about `Host` or the framing a second time: each is a way to smuggle a request past the router.
    """
    head = _head(method, target, host, tuple(headers))
    if size or method not in ("GET", "HEAD"):
        return b"%bcontent-length: %d\r\n\r\n" % (head, size)
    return head + b"\r\n"


@lru_cache(maxsize=256)  # a client sends the same headers with each of its requests
def _head(method: str, target: str, host: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Return a head without length and end."""
    lines: list[bytes] = []
    for name, value in headers:
        if name.lower() in _FRAMING:
            raise ValueError(f"the header {name!r} is not the caller's to send")
        lines.append(b"%b: %b\r\n" % (name, value))
    start = b"%b %b HTTP/1.1\r\n" % (method.encode("ascii"), target.encode("ascii"))
    head = b"".join((start, b"host: ", host, b"\r\n", *lines))
    # Counting the line ends that we wrote is several times cheaper than searching each name and value for others.
    ends = len(lines) + 2
    if head.count(b"\r") != ends or head.count(b"\n") != ends or b"\0" in head or start.count(b" ") != 2:
        raise ValueError(f"the request {method} {target!r} holds characters that would change its meaning")
    return head


class Answer:
    """A node's answer: the head when it has come, and the body as it comes.

    For one task at a time. Read it to its end or `abort` it; an answer left alone keeps its connection.
    """

    __slots__ = (
        "_connection", "_failure", "_over", "_parts", "_waiter", "content_type", "headers", "heard", "status", "unread",
    )  # fmt: skip

    status: int
    """HTTP status; 0 until the head has come."""
    headers: list[tuple[bytes, bytes]]
    """In the node's order, names in lower case."""
    content_type: bytes
    """The media type as the node wrote it, or nothing."""
    heard: bool
    """Whether the node has sent a single byte since the request."""
    unread: int
    """Bytes of body that have arrived and were not read yet."""

    def __init__(self, connection: "Connection") -> None:
        self.status = 0
        self.headers = []
        self.content_type = b""
        self.heard = False
        self.unread = 0
        self._connection: Connection | None = connection
        self._parts: list[bytes] = []
        self._over = False
        self._failure: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether all was read and the end is known to be clean: the next read returns nothing at once."""
        return self._over and not self._parts and self._failure is None

    @property
    def awaited(self) -> bool:
        """Whether a task waits for this answer, with nothing there for it yet."""
        return self._waiter is not None and not self._waiter.done()

    async def head(self) -> None:
        """Wait for status and headers. Raises `NodeUnreachable` (reset, protocol) or `NodeTimeout`."""
        if not self.status and not self._over:
            await self._wait()
        if not self.status and self._failure is not None:
            raise copy(self._failure)  # the raised one holds frames, and with them this answer

    async def read(self) -> bytes:
        """Return all that has arrived since the last read, waiting for at least one byte; nothing at the clean end.

        Raises `NodeUnreachable` with cause reset when the connection ended before the body did (or was aborted here),
        with cause protocol when the node sent no HTTP, and `NodeTimeout` when it fell silent. What arrived before the
        failure is returned first. A cancelled read closes the connection.
        """
        if not self._parts and not self._over:
            await self._wait()
        if self._parts:
            parts, self._parts = self._parts, []
            self.unread = 0
            if self._connection is not None:
                self._connection.listen()
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if self._failure is not None:
            raise copy(self._failure)
        return b""

    async def read_all(self, limit: int) -> bytes:
        """Return the whole body. Raises as `read` does, and `NodeUnreachable` (protocol) beyond `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                self.abort()
                raise NodeUnreachable(f"the node's answer is larger than {limit} bytes", cause="protocol")
            parts.append(data)
        return b"".join(parts)

    def abort(self) -> None:
        """Close the connection now, so that the node sees its client leave. Idempotent, also after the end."""
        if self._connection is not None:
            self._connection.close()

    def put(self, data: bytes) -> None:
        """Take a part of the body from the connection."""
        self._parts.append(data)
        self.unread += len(data)
        self.wake()

    def end(self, failure: UpstreamError | None = None) -> None:
        """Let go of the connection: nothing more will come, and `failure` says why if the answer is not whole."""
        self._connection = None
        self._over = True
        self._failure = failure
        self.wake()

    def wake(self) -> None:
        """Let the task that waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        assert self._connection is not None
        assert self._waiter is None, "an answer has one reader"
        self._waiter = self._connection.expect()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None


class Connection(asyncio.Protocol):
    """One connection to a node. It is idle, busy with one answer, or closed for good."""

    def __init__(
        self,
        name: str,
        outbox: Outbox,
        *,
        silence_max_s: float,
        idle: Callable[["Connection"], None],
        lost: Callable[["Connection"], None],
    ) -> None:
        """Call the node `name` in messages, `idle` whenever a request may follow, and `lost` once at the end."""
        self._name = name
        self._outbox = outbox
        self._silence_max_s = silence_max_s
        self._idle = idle
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._bodiless = False
        self._finished = False  # the answer is whole
        self._clean = False  # and the parser stands where the next one may begin
        self._head_bytes = 0
        self._barren_bytes = 0  # since the last byte of body
        self._unsent = _NOTHING
        self._blocked = False
        self._deaf = False
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0

    def send(self, head: bytes, body: Body, *, bodiless: bool) -> Answer:
        """Start a request and return its answer, of which nothing has come yet. `bodiless`: the request is a HEAD.

        A large body leaves as the node takes it, so it must not change before the answer has ended.
        """
        assert self._answer is None, "a connection carries one request at a time"
        answer = self._answer = Answer(self)
        self._bodiless = bodiless
        self._finished = self._clean = False
        self._head_bytes = self._barren_bytes = 0
        if self.transport.is_closing():
            self._hang_up(None)
        elif len(body) <= JOIN_MAX_BYTES:
            self._outbox.post(self.transport, b"".join((head, body)))
        else:
            self.transport.write(head)
            self._unsent = memoryview(body)
            self._pump()
        return answer

    def expect(self) -> asyncio.Future[None]:
        """Return a future for the task that waits for the node, which must not stay silent for too long from now on."""
        # A timer made and cancelled for each read costs more than the read; one that compares when it fires does not.
        self._deadline = self._loop.time() + self._silence_max_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look)
        return self._loop.create_future()

    def listen(self) -> None:
        """Take more from the node, if reading was paused."""
        if self._deaf:
            self._deaf = False
            self.transport.resume_reading()

    def close(self) -> None:
        """Close at once, whatever is unsent. An answer under way fails as reset."""
        self._end(NodeUnreachable(f"the connection to {self._name} was closed on this side", cause="reset"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin idle. asyncio and uvloop have set TCP_NODELAY."""
        # uvloop's transports are asyncio's in all but name.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what the node sent, through the callbacks `on_…`."""
        answer = self._answer
        if answer is None:  # nobody asked, and it must not become the answer to the next request
            self.close()
            return
        answer.heard = True
        self._barren_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            reason = error.__context__ if isinstance(error.__context__, _ImproperError) else error
            self._end(self._improper(f"what is not HTTP: {reason}"))
        else:
            self._after_data(answer)

    def eof_received(self) -> None:
        """Take the end of what the node sends for the end of the connection, on which nothing more can be asked."""
        self._hang_up(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._hang_up(exc)
        if not self.gone.done():
            self.gone.set_result(None)
        self._lost(self)

    def pause_writing(self) -> None:
        """Keep the rest of the body until the node has taken what was sent."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Send more of the body. A node that takes our bytes is not silent."""
        self._blocked = False
        self._deadline = self._loop.time() + self._silence_max_s
        self._pump()

    def on_message_begin(self) -> None:
        """Refuse to take what follows a whole answer for part of it."""
        if self._finished:
            raise _ImproperError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; drop a trailer, which nobody downstream would see."""
        answer = self._answer
        assert answer is not None
        if answer.status:
            return
        name = name.lower()
        value = value.rstrip(b" \t")
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > HEAD_MAX_BYTES:
            raise _ImproperError(f"a head of more than {HEAD_MAX_BYTES} bytes")
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise _ImproperError(f"transfer coding {value!r}, which was not asked for")
        if name == b"content-type" and not answer.content_type:
            answer.content_type = value
        answer.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Hand over the head, unless it is one of those (1xx) that only announce another."""
        answer = self._answer
        assert answer is not None
        status = self._parser.get_status_code()
        if status == 101:
            raise _ImproperError("101 Switching Protocols, which was not asked for")
        if status < 200:
            answer.headers.clear()
            answer.content_type = b""
            return
        answer.status = status
        self._finished = self._bodiless
        answer.wake()

    def on_body(self, data: bytes) -> None:
        """Hand over a part of the body."""
        answer = self._answer
        assert answer is not None
        if self._finished:  # the answer to HEAD
            raise _ImproperError("a body where none belongs")
        self._barren_bytes = 0
        answer.put(data)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        assert self._answer is not None
        if self._answer.status:
            self._finished = True
            # httptools cannot be told that the answer to HEAD has no body, so it may be waiting for one.
            self._clean = not self._bodiless and self._parser.should_keep_alive()

    def _after_data(self, answer: Answer) -> None:
        if self._finished:
            self._part(answer)
        elif self._barren_bytes > HEAD_MAX_BYTES:
            self._end(self._improper("framing without content"))
        elif answer.unread > UNREAD_MAX_BYTES:
            self._deaf = True
            self.transport.pause_reading()
        elif answer.status and answer.awaited:  # a head that trickles in is no sign of life
            self._deadline = self._loop.time() + self._silence_max_s

    def _part(self, answer: Answer) -> None:
        """Part with a whole answer; stay open only if nothing is left over in either direction."""
        unsent = self._unsent or self._outbox.holds(self.transport) or self.transport.get_write_buffer_size()
        if unsent or not self._clean:
            self._end(None)
            return
        self._answer = None
        answer.end()
        self.listen()
        self._idle(self)

    def _hang_up(self, error: Exception | None) -> None:
        """End because the node did, which ends a body without declared length properly, and any other too soon."""
        answer = self._answer
        if answer is not None and answer.status and error is None and not _declares_end(answer.headers):
            self._end(None)
        else:
            detail = f": {error}" if error else " before the answer was whole"
            self._end(NodeUnreachable(f"{self._name} closed the connection{detail}", cause="reset"))

    def _end(self, failure: UpstreamError | None) -> None:
        """Close the connection; an answer under way ends with `failure` if it is not whole."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.end(None if self._finished else failure)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unsent = _NOTHING
        self.transport.abort()

    def _improper(self, what: str) -> NodeUnreachable:
        return NodeUnreachable(f"{self._name} answered with {what}", cause="protocol")

    def _look(self) -> None:
        """Give up on a silent node, or look again when its time is over."""
        self._timer = None
        if self._answer is None or not self._answer.awaited:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self._end(NodeTimeout(f"{self._name} was silent for {self._silence_max_s:g} s"))

    def _pump(self) -> None:
        while self._unsent and not self._blocked and not self.transport.is_closing():
            piece, self._unsent = self._unsent[:SLICE_BYTES], self._unsent[SLICE_BYTES:]
            self.transport.write(piece)
        if not self._unsent:
            self._unsent = _NOTHING  # even an empty view would keep the body alive while the connection is idle


class _ImproperError(Exception):
    """Raised in a parser's callback: grammatical HTTP, but not an answer to what we asked."""


def _declares_end(headers: Headers) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
