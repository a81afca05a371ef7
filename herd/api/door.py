"""The HTTP edge: uvicorn's protocol for every path, and a shorter way for the few that make a model work.

An ASGI exchange costs two tasks, an event, a scope and a handful of messages before anything is decided (what that came
to is in docs/performance.md), and it does not see all that a client may do. Here the protocol itself collects the
body, starts one task, and is the client's end of it. It also holds what a server that faces strangers must: a limit and
a deadline for heads and bodies, for the number of requests sent ahead, and for clients that read nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from herd.dispatch.outbox import Outbox
from herd.dispatch.run import ClientGone, Headers
from herd.errors import HerdError, Overloaded, TooLarge

logger = logging.getLogger(__name__)

HEAD_MAX_BYTES = 64 * 1024
HEAD_MAX_S = 30.0
BODY_SILENCE_MAX_S = 60.0
IDLE_MAX_S = 75.0
"""How long an idle connection is kept; nginx's default, and longer than clients keep theirs."""

CLOSE_MAX_S = 5.0
"""How long a connection that is being closed may take to swallow what was sent."""

AHEAD_MAX = 16
"""Requests that a client may send before the first is answered."""

BODIES_MAX = 8
"""All bodies in memory together are at most this many times as large as one may be."""

HELD_MAX_BYTES = 64 * 1024
"""A larger piece of an answer is written at once."""

SLICE_BYTES = 256 * 1024
"""So much of it, before the next is written only when the client has read."""

_OFFERS = frozenset((b"upgrade", b"http2-settings", b"connection"))
_NEVER = float("inf")


class Inlet:
    """What all connections share: which paths are answered here, by whom, and how much they may hold."""

    def __init__(
        self,
        answer: "Callable[[Exchange], Coroutine[Any, Any, None]]",
        paths: Mapping[str, Any],
        new_id: Callable[[], str],
        *,
        body_max_bytes: int,
        stall_max_s: float,
    ) -> None:
        """`new_id` names answers to what was no request; a client may leave things unread for `stall_max_s`."""
        self.answer = answer
        self.new_id = new_id
        self.paths = {path.encode(): path for path in paths}
        self.body_max_bytes = body_max_bytes
        self.stall_max_s = stall_max_s
        self.outbox = Outbox()
        self.closed = False
        """Whether no request may begin any more: what they need is being taken apart."""
        self.held_bytes = 0
        """Bodies in memory, of all connections."""
        self.held_max_bytes = BODIES_MAX * body_max_bytes
        self._dated: list[tuple[bytes, bytes]] = []
        self._date = b""

    def date(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return uvicorn's default headers, of which there are new ones each second, as bytes."""
        if headers is not self._dated:
            self._dated = headers
            self._date = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return self._date


class Exchange:
    """One request on an inference path, and the client's end of its answer.

    `response_complete`, `keep_alive` and `more_body` are what uvicorn's protocol asks of any request.
    """

    __slots__ = (
        "_chunks", "_door", "_framed", "_head", "_parts", "_size", "body", "gone", "headers", "keep_alive", "method",
        "more_body", "path", "refusal", "response_complete", "task",
    )  # fmt: skip

    def __init__(
        self,
        door: "Door",
        path: str,
        method: bytes,
        headers: list[tuple[bytes, bytes]],
        *,
        chunks: bool,
        keep_alive: bool,
    ) -> None:
        """`chunks`: whether the client understands chunked bodies, which HTTP/1.0 does not have."""
        self._door = door
        self._chunks = chunks
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._framed = False
        self.path = path
        self.method = method
        self.headers = headers
        """Names in lower case."""
        self.body = b""
        self.refusal: HerdError | None = None
        """Why the body was not taken."""
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_complete = False

    @property
    def client(self) -> str:
        """The client's address."""
        peer = self._door.client
        return peer[0] if peer else ""

    @property
    def behind(self) -> bool:
        """Whether more has been sent to the client than it takes."""
        return self._door.flow.write_paused

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        """Take the head of an answer; it leaves with the first piece of the body. `length` is the body's, if known."""
        door = self._door
        lines = [b"%b: %b\r\n" % pair for pair in headers]
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif self._chunks:
            self._framed = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self.keep_alive = False  # a body of unknown length ends with its connection
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise ValueError("a header of the answer holds characters that would change its meaning")
        line = STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status
        self._head = b"%b%b%b\r\n" % (line, door.inlet.date(door.server_state.default_headers), head)

    async def send(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body; wait while the client does not read.

        Raises `ClientGone` when it left, or left too much unread for too long.
        """
        door = self._door
        if self.gone or self.response_complete:
            raise ClientGone
        if door.flow.write_paused:
            await door.drained()
        head, self._head = self._head, b""
        if not self._framed:
            piece = head + data if head else data
        elif more:
            piece = b"%b%x\r\n%b\r\n" % (head, len(data), data) if data else head
        elif data:
            piece = b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(data), data)
        else:
            piece = head + b"0\r\n\r\n"
        if len(piece) <= HELD_MAX_BYTES:
            door.inlet.outbox.post(door.transport, piece)
        else:
            door.inlet.outbox.flush()
            rest = memoryview(piece)
            while rest:  # by slices: the deadline is for a client that reads nothing, not for one that reads slowly
                door.transport.write(rest[:SLICE_BYTES])
                rest = rest[SLICE_BYTES:]
                if door.flow.write_paused:
                    await door.drained()
        if not more:
            self.response_complete = True
            door.on_response_complete()

    # --- what the door brings ---------------------------------------------------------------------------------------

    def take(self, part: bytes) -> None:
        """Take a part of the body, unless there is too much of it."""
        inlet = self._door.inlet
        self._size += len(part)
        inlet.held_bytes += len(part)
        self._parts.append(part)
        if self._size > inlet.body_max_bytes:
            self.refuse(TooLarge(inlet.body_max_bytes))
        elif inlet.held_bytes > inlet.held_max_bytes:
            self.refuse(Overloaded("the router holds as many request bodies as it may; try again"))

    def refuse(self, refusal: HerdError) -> None:
        """Take no (more) body, and let the answer say why."""
        self.refusal = refusal
        self.release()
        self.keep_alive = False

    def whole(self) -> None:
        """Nothing more will come."""
        self.more_body = False
        parts = self._parts
        self.body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()

    def release(self) -> None:
        """Give back the room that the body took."""
        self._door.inlet.held_bytes -= self._size
        self._size = 0
        self._parts.clear()
        self.body = b""

    def leave(self) -> None:
        """The client hung up, so nobody shall work for it any longer."""
        self.gone = True
        if self.task is not None:
            self.task.cancel()
        else:
            self.release()


class Door(HttpToolsProtocol):
    """One connection from a client."""

    def __init__(self, inlet: Inlet, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.inlet = inlet
        self._filling: Exchange | None = None
        """The exchange whose body arrives now."""
        self._serving: Exchange | RequestResponseCycle | None = None
        """The request whose turn it is; `cycle` is the one that arrived last."""
        self._in_head = False
        self._head_bytes = 0
        self._barren_bytes = 0
        """Since the last byte of a body, or the beginning of a request."""
        self._offered = False
        """The request at hand offers to go on in another protocol, which is declined."""
        self._deaf = False
        """Nothing more is taken from this client; it only shall read the last answer."""
        self._deadline = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER

    # --- asyncio ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as in uvicorn
        """Begin idle."""
        super().connection_made(transport)
        self._expect_within(IDLE_MAX_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of every request of this client, also of those that it sent ahead."""
        if self._timer is not None:
            self._timer.cancel()
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for each in (self._serving, self.cycle, *waiting):
            if isinstance(each, Exchange):
                if not each.response_complete and not each.gone:
                    each.leave()
            elif each is not None and not each.response_complete:
                each.disconnected = True
                each.message_event.set()
        if isinstance(self.cycle, Exchange):
            self.cycle = cast("RequestResponseCycle", None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent, through the callbacks `on_…`."""
        while data and not self._deaf and not self.transport.is_closing():
            self._barren_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._decline(data[offer.args[0] :])
            except httptools.HttpParserError:
                self._reject(b"400 Bad Request", HTTPStatus.BAD_REQUEST)
                return
            else:
                if self._in_head or self._filling is not None or self._is_serving():
                    self._after_data(len(data))
                return

    def eof_received(self) -> None:
        """Take a client that sends no more for one that has left, as Go does: asyncio closes what nobody keeps open."""

    # --- the parser -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request. What ASGI needs besides is made when it is known that it goes there."""
        self.url = b""
        self.headers = []
        self._in_head = True
        self._head_bytes = self._barren_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; drop a trailer, for which there is no limit and no use."""
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide who answers."""
        parser = self.parser
        if parser.should_upgrade():
            self._offered = True
            return
        self._in_head = False
        path = self.inlet.paths.get(self.url) or self._path()
        if path is None:
            self._to_house()
            return
        modern = parser.get_http_version() == "1.1"
        exchange = self._filling = Exchange(
            self,
            path,
            parser.get_method(),
            self.headers,
            chunks=modern,
            keep_alive=modern and parser.should_keep_alive(),
        )
        self.cycle = cast("RequestResponseCycle", exchange)  # it has what uvicorn asks of one
        if self._is_serving():
            self.pipeline.appendleft((self.cycle, cast("Any", None)))  # no application will be asked
            self._bound_ahead()
        else:
            self._serving = exchange
        self._look_ahead(exchange)

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._barren_bytes = 0
        exchange = self._filling
        if exchange is None:
            if not self._offered:
                super().on_body(body)
        elif exchange.refusal is None:
            exchange.take(body)
            if exchange.refusal is not None:
                self._go(exchange)

    def on_message_complete(self) -> None:
        """Start work, now that the request is whole."""
        exchange, self._filling = self._filling, None
        if exchange is None:
            if not self._offered:
                super().on_message_complete()
        elif exchange.refusal is None:
            exchange.whole()
            self._go(exchange)

    # --- uvicorn ----------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Turn to the next request, or wait for one."""
        self.server_state.total_requests += 1
        served = self._serving
        if isinstance(served, Exchange):
            served.release()
            if not served.keep_alive:
                self._close(lingering=served.more_body)
                return
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._serving = None
            self._expect_within(IDLE_MAX_S)

    def shutdown(self) -> None:
        """Close, at once or after the answer that runs."""
        self.inlet.outbox.flush()
        if isinstance(self._serving, RequestResponseCycle) and self._is_serving() and self._serving.more_body:
            self.transport.abort()  # a report that has not arrived; its task, if cancelled, would be logged as a bug
            return
        super().shutdown()

    async def drained(self) -> None:
        """Wait until the client has read. Raises `ClientGone` when it does not."""
        try:
            async with asyncio.timeout(self.inlet.stall_max_s):
                await self.flow.drain()
        except TimeoutError:
            self.transport.abort()
            raise ClientGone from None
        if self.transport.is_closing():
            raise ClientGone

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._serving = cycle
        if self.inlet.closed:
            self._close(lingering=False)
        elif isinstance(cycle, Exchange):
            self._expect_within(BODY_SILENCE_MAX_S)
            self._go(cycle)
        else:
            if cycle.more_body:
                self._expect_within(BODY_SILENCE_MAX_S)
            super()._start_asgi_task(cycle, app)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _is_serving(self) -> bool:
        return self._serving is not None and not self._serving.response_complete

    def _is_answering(self) -> bool:
        served = self._serving
        if served is None or served.response_complete:
            return False
        return served.task is not None if isinstance(served, Exchange) else served.response_started

    def _path(self) -> str | None:
        """Look again at a target that is not spelled as plainly as usual; None for the paths that others answer."""
        try:
            path = httptools.parse_url(self.url).path
        except httptools.HttpParserInvalidURLError:
            return None
        return self.inlet.paths.get(path) if path else None

    def _look_ahead(self, exchange: Exchange) -> None:
        """Refuse a body before it is sent, or ask for it, where the head says that there will be one."""
        limit = self.inlet.body_max_bytes
        for name, value in exchange.headers:
            if name == b"content-length":
                if int(value) > limit:  # a number, or the parser would have stopped
                    exchange.refuse(TooLarge(limit))
                    self._go(exchange)
                    return
            elif name == b"expect" and value.lower() == b"100-continue" and self._may_continue(exchange):
                self.inlet.outbox.post(self.transport, b"HTTP/1.1 100 Continue\r\n\r\n")

    def _may_continue(self, exchange: Exchange) -> bool:
        """Whether a client may be told to go on: HTTP/1.0 does not know it, and whoever is not served yet waits."""
        return exchange is self._serving and self.parser.get_http_version() == "1.1"

    def _to_house(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        if self.pipeline:
            self._bound_ahead()

    def _bound_ahead(self) -> None:
        """Keep reading although a request waits: else nobody would notice that the client has left."""
        self.flow.resume_reading()
        if len(self.pipeline) > AHEAD_MAX:
            self.transport.abort()

    def _go(self, exchange: Exchange) -> None:
        """Answer, if it is this request's turn and there is nothing more to wait for."""
        if exchange is not self._serving or exchange.task is not None or exchange.gone:
            return
        if exchange.more_body and exchange.refusal is None:
            return
        if self.inlet.closed:
            self._close(lingering=False)
            return
        self._deadline = _NEVER
        exchange.task = task = self.loop.create_task(self.inlet.answer(exchange))
        self.tasks.add(task)
        task.add_done_callback(partial(self._done, exchange))

    def _done(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a bug failed a request to %s", exchange.path, exc_info=error)
        if not exchange.response_complete:
            exchange.release()
            self.transport.abort()

    def _after_data(self, size: int) -> None:
        """Hold a client that has begun a request to an end of it in time."""
        if self._in_head:
            if self._head_bytes == 0:  # what it came with may have been the end of another request
                self._head_bytes = 1
                self._expect_within(HEAD_MAX_S)
                return
            self._head_bytes += size
            if self._head_bytes > HEAD_MAX_BYTES:
                self._reject(b"431 Request Header Fields Too Large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._barren_bytes > HEAD_MAX_BYTES:  # trailers, or framing without content
            self._reject(b"431 Request Header Fields Too Large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._serving is not None and self._serving.more_body:
            self._expect_within(BODY_SILENCE_MAX_S)
        elif self._is_serving():
            self._deadline = _NEVER

    def _decline(self, rest: bytes) -> bytes:
        """Serve a request that offers another protocol (Java's client: h2c) as the plain request that it is.

        Returns what is to be parsed next.

        The parser stops at such an offer and takes the body for the other protocol, so the head is shown to a new one
        without the offer.
        """
        if self.parser.get_method() == b"CONNECT":
            self._reject(b"400 Bad Request", HTTPStatus.BAD_REQUEST)
            return b""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name not in _OFFERS]
        if not self.parser.should_keep_alive():
            lines.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._offered = False
        self._in_head = False
        return b"\r\n".join(lines) + b"\r\n\r\n" + rest

    def _reject(self, text: bytes, status: HTTPStatus) -> None:
        """Answer what is no request, and close. In the middle of another answer there is nothing to be said."""
        if self._is_answering() or self.transport.is_closing():
            self.transport.abort()
            return
        if isinstance(self._serving, RequestResponseCycle):  # its task runs, and must not write after this
            self._serving.disconnected = True
            self._serving.message_event.set()
        inlet = self.inlet
        lines = (
            STATUS_LINE[status],
            inlet.date(self.server_state.default_headers),
            b"content-type: text/plain; charset=utf-8\r\nx-request-id: ",
            inlet.new_id().encode(),
            b"\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text),
            text,
        )
        inlet.outbox.post(self.transport, b"".join(lines))
        self._close(lingering=True)

    def _close(self, *, lingering: bool) -> None:
        """Close. While the client still sends, closing at once would tear the answer out of its hands."""
        self._expect_within(CLOSE_MAX_S)
        self.inlet.outbox.flush()
        if lingering:
            self._deaf = True
            self.transport.write_eof()
        else:
            self.transport.close()

    def _expect_within(self, seconds: float) -> None:
        """Give up the connection unless something happens by then.

        A timer made and cancelled for each request costs more than one that compares when it fires.
        """
        self._deadline = deadline = self.loop.time() + seconds
        if self._timer is None or self._timer_at > deadline + 1.0:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.loop.time() >= self._deadline:
            self.transport.abort()
        elif self._deadline != _NEVER:
            self._timer_at = self._deadline
            self._timer = self.loop.call_at(self._deadline, self._look)
