"""The failures worth testing happen below HTTP, where a web framework lets no test reach."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools

from tests.fakes.faults import Faults

SMALL_BYTES = 2048
"""Go sends a body up to this size with its length, and chunks a longer one."""


class Request(NamedTuple):
    """A request as it came, kept for tests to look at."""

    method: str
    path: str
    """Without the query string, percent-encoding untouched."""
    query: str
    headers: tuple[tuple[str, str], ...]
    """As sent: order, case and repetitions."""
    body: bytes
    http: str
    """`1.0` or `1.1`."""
    keep_alive: bool

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Cut(Exception):
    """A fault ended the answer; the handler has nothing more to do."""


class Bell:
    """Lets a test wait for a condition without polling: whoever changes something rings."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ring(self) -> None:
        """Let everybody who waits look again."""
        self._next.set()
        self._next = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is tried at once and after each ring."""
        while not condition():
            await self._next.wait()


class Connection(asyncio.Protocol):
    """One client connection: reads requests and has them answered in order, one at a time."""

    def __init__(
        self,
        answer: Callable[[Request, "Connection"], Coroutine[Any, Any, None]],
        opened: Callable[["Connection"], None],
        closed: Callable[["Connection"], None],
    ) -> None:
        self._answer, self._opened, self._closed = answer, opened, closed
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._writable = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._ending = False
        self.worker: asyncio.Task[None] | None = None
        """Answers requests while there are any."""
        self._begin()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.worker is None or self.worker.done()

    async def write(self, data: bytes) -> None:
        """Send, and wait while the client reads too slowly."""
        if self._transport is not None:
            self._transport.write(data)
        await self._writable.wait()

    def finish(self) -> None:
        """End in good order after the answer that is on its way, if there is one."""
        self._ending = True
        if self.idle:
            self.close()

    def close(self) -> None:
        """End in good order: what was written still arrives."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """End with a TCP reset, as a killed process or a pulled cable's router does."""
        if self._transport is None:
            return
        sock: socket.socket = self._transport.get_extra_info("socket")
        # Lingering for zero seconds turns the close into a reset.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # --- asyncio calls these ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._writable.set()
        self._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        if self.worker is not None:
            self.worker.cancel()
        self._closed(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
            self.close()

    # --- the parser calls these ---

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if any(k.lower() == "expect" and v.lower() == "100-continue" for k, v in self._headers) and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path, _, query = self._target.decode("latin-1").partition("?")
        self._waiting.append(
            Request(
                self._parser.get_method().decode(), path, query, tuple(self._headers), bytes(self._body),
                self._parser.get_http_version(), self._parser.should_keep_alive(),
            )
        )  # fmt: skip
        if self.idle:
            self.worker = asyncio.create_task(self._work())

    def _begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()

    async def _work(self) -> None:
        while self._waiting and self._transport is not None:
            request = self._waiting.popleft()
            await self._answer(request, self)
            if self._ending or not request.keep_alive:
                self.close()
                return


class Reply:
    """Writes one answer as Go's HTTP server frames it, and spoils it where the faults say so."""

    def __init__(
        self, request: Request, connection: Connection, faults: Faults, bell: Bell, headers: dict[str, str]
    ) -> None:
        self._request, self._connection, self._faults, self._bell = request, connection, faults, bell
        self._headers = headers
        self._lines = 0
        self._held = b""
        self._chunked = False

    async def whole(self, status: int, body: bytes, content_type: str, **headers: str) -> None:
        """Send a complete answer; a header `location` or `allow` is given by that name."""
        if status >= 400 and self._faults.empty_error_body:
            body = b""
        if len(body) > SMALL_BYTES and self._request.method != "HEAD":
            await self.open(content_type, status)
            await self._chunk(body)
            await self.end()
            return
        head = self._head(status, content_type, {"content-length": str(len(body))} | headers)
        await self._send_head(head)
        if body and self._request.method != "HEAD":
            await self._write(body)

    async def open(self, content_type: str, status: int = 200) -> None:
        """Send the head of a streamed answer."""
        self._chunked = self._request.http != "1.0"
        extra = {"transfer-encoding": "chunked"} if self._chunked else {"connection": "close"}
        await self._send_head(self._head(status, content_type, extra))

    async def line(self, line: bytes, error: Callable[[str], bytes], *, flush: bool = True) -> None:
        """Send one line of a stream, at once or with the next; `error` makes a line of a failure's text. Raises Cut."""
        faults, sent = self._faults, self._lines
        if sent in (
            faults.stall_after_lines,
            faults.reset_after_lines,
            faults.error_after_lines,
            faults.end_after_lines,
        ):
            await self._flush()
        await self._bell.until(lambda: faults.stall_after_lines is None or sent < faults.stall_after_lines)
        if sent == faults.reset_after_lines:
            self._connection.reset()
            raise Cut
        if sent == faults.error_after_lines:
            await self._chunk(error(faults.error_text))
        if sent in (faults.error_after_lines, faults.end_after_lines):
            await self.end()
            raise Cut
        self._held += line
        if flush:
            await self._flush()
        self._lines += 1
        self._bell.ring()

    async def end(self) -> None:
        """End a streamed answer properly."""
        if self._chunked:
            await self._write(b"0\r\n\r\n")
        else:
            self._connection.close()

    async def _flush(self) -> None:
        held, self._held = self._held, b""
        if held:
            await self._chunk(held)

    async def _chunk(self, data: bytes) -> None:
        await self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def _write(self, data: bytes) -> None:
        if not self._faults.trickle:
            await self._connection.write(data)
            return
        for each in data:
            await self._connection.write(bytes((each,)))
            await asyncio.sleep(0)

    async def _send_head(self, head: bytes) -> None:
        faults = self._faults
        if faults.first_byte_delay_ms:
            await asyncio.sleep(faults.first_byte_delay_ms / 1000)
        if faults.endless_head:
            await self._write(head.removesuffix(b"\r\n"))
            while True:  # until the client leaves, and this task is cancelled
                await self._connection.write(b"X-More: %b\r\n" % (b"x" * 1000))
                await asyncio.sleep(0)
        if not faults.head_byte_delay_ms:
            await self._write(head)
            return
        for each in head:
            await asyncio.sleep(faults.head_byte_delay_ms / 1000)
            await self._connection.write(bytes((each,)))

    def _head(self, status: int, content_type: str, extra: dict[str, str]) -> bytes:
        headers = {"date": formatdate(usegmt=True)} | self._headers | extra
        if said := self._faults.content_type or content_type:
            headers["content-type"] = said
        if self._faults.content_encoding:
            headers["content-encoding"] = self._faults.content_encoding
        if status == HTTPStatus.NO_CONTENT:
            headers.pop("content-length", None)
        lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{k.title()}: {v}" for k, v in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status code {status}"
