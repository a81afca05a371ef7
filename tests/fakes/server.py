"""What the fakes of every engine share: a port, a memory of what was asked, and faults."""

import asyncio
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.fakes.connection import Bell, Connection, Cut, Reply, Request
from tests.fakes.faults import Faults

CONTROL_PATHS = frozenset({"/fault", "/seen"})
"""Routes that no engine has, for tests that run a fake as a program. They are not recorded and never spoiled."""

WEB_PAGE = b"<!DOCTYPE html><html><title>Welcome</title><p>Please sign in to use this network.</html>\n"
"""What the fault of that name answers."""


class FakeServer:
    """A server on loopback, alive inside an `async with` block, in the loop of the test.

    A bug in a fake must not look like a fault of a node: it is raised when the block ends.
    """

    spoiled: frozenset[str] = frozenset()
    """Paths that faults apply to by default."""

    def __init__(self, *, port: int = 0) -> None:
        self.bell = Bell()
        self.faults = Faults()
        self.seen: list[Request] = []
        """Every request, in order of arrival."""
        self.disconnects: list[Request] = []
        """Requests whose client left before the answer was complete."""
        self._honest = Faults()
        self._port = port
        self._connections: set[Connection] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._bugs: list[Exception] = []
        self._listener: asyncio.Server | None = None
        self._listening: socket.socket | None = None
        self._opening: asyncio.Task[None] | None = None
        self._alive = False
        self.faults.on_change = self._faults_changed

    async def __aenter__(self) -> Self:
        # Bound and never listening: it keeps the port ours while the listener is closed.
        self._claim = _bound(self._port)
        self._port = self._claim.getsockname()[1]
        self._alive = True
        self._faults_changed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alive = False
        self._stop_listening()
        for connection in list(self._connections):
            connection.reset()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._claim.close()
        if self._bugs:
            raise ExceptionGroup("the fake server itself failed", self._bugs)

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port, the same before and after a refusal."""
        return self._port

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._connections)

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
        """Return when the condition holds; it is tried after everything that happens here. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self.bell.until(condition)

    def die(self) -> None:
        """Break every connection and refuse new ones, as a killed process does; `faults.refuse = False` revives."""
        self.faults.refuse = True
        for connection in list(self._connections):
            connection.reset()

    def asked(self, path: str) -> list[Request]:
        """The requests for that path, in order of arrival."""
        return [request for request in self.seen if request.path == path]

    async def route(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        raise NotImplementedError

    def error(self, request: Request, status: int, text: str) -> tuple[bytes, str]:
        """The body and content type of an error as the engine words it for that path."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What `GET /seen` shows besides the requests."""
        return {"disconnects": len(self.disconnects), "connections": self.connections}

    def lengthened(self, reason: str) -> str:
        """Return why an answer ended, as long as the faults want it."""
        return reason.ljust(self.faults.big_reason_bytes, "x")

    def headers(self, request: Request) -> dict[str, str]:
        """Headers that the engine adds to every answer to such a request."""
        return {}

    # --- connections ---

    async def _answer(self, request: Request, connection: Connection) -> None:
        if request.path in CONTROL_PATHS:
            await self._control(request, Reply(request, connection, self._honest, self.bell, {}))
            return
        self.seen.append(request)
        self.bell.ring()
        faults = self._faults_for(request)
        reply = Reply(request, connection, faults, self.bell, self.headers(request))
        try:
            if not await self._spoil(request, reply, connection, faults):
                await self.route(request, reply)
        except Cut:
            pass
        except asyncio.CancelledError:
            if self._alive:
                self.disconnects.append(request)
            raise
        except Exception as bug:  # noqa: BLE001 -- the top of a connection's task; raised again when the block ends
            self._bugs.append(bug)
            connection.reset()
        finally:
            self.bell.ring()

    def _faults_for(self, request: Request) -> Faults:
        if not (self.faults.everywhere or request.path in self.spoiled) or self.faults.remaining == 0:
            return self._honest
        if self.faults.remaining is not None:
            self.faults.remaining -= 1
        return self.faults

    async def _spoil(self, request: Request, reply: Reply, connection: Connection, faults: Faults) -> bool:
        """Apply what replaces an answer as a whole; say whether something did."""
        await self.bell.until(lambda: not faults.hang)
        if faults.reset_before_head:
            connection.reset()
        elif faults.garbage:
            await connection.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            connection.close()
        elif faults.web_page:
            await reply.whole(200, WEB_PAGE, "text/html; charset=utf-8")
        elif faults.busy or faults.status:
            text = (
                "server busy, please try again.  maximum pending requests exceeded"
                if faults.busy
                else faults.status_text
            )
            status = 503 if faults.busy else faults.status
            await reply.whole(status, *self.error(request, status, text))
        else:
            return False
        return True

    async def _control(self, request: Request, reply: Reply) -> None:
        status, answer = 200, self.faults.shown()
        if request.path == "/seen":
            requests = [
                {
                    "method": each.method,
                    "path": each.path,
                    "headers": each.headers,
                    "body": each.body.decode("utf-8", "replace"),
                }
                for each in self.seen
            ]
            answer = self.state() | {"requests": requests}
        elif request.method == "DELETE":
            self.faults.clear()
            answer = self.faults.shown()
        elif request.method == "POST":
            try:
                switches = msgspec.json.decode(request.body, type=dict[str, Any])
                if switches.get("refuse"):
                    raise ValueError("a closed listener could not be told to open again; stop the program instead")
                self.faults.update(switches)
                answer = self.faults.shown()
            except ValueError as error:
                status, answer = 400, {"error": str(error)}
        await reply.whole(status, msgspec.json.encode(answer), "application/json")

    def _connection(self) -> Connection:
        return Connection(self._answer, self._connection_opened, self._connection_closed)

    def _connection_opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.bell.ring()

    def _connection_closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection.worker is not None and not connection.worker.done():
            self._workers.add(connection.worker)
            connection.worker.add_done_callback(self._workers.discard)
        self.bell.ring()

    # --- listening ---

    def _faults_changed(self) -> None:
        if self._alive and self.faults.refuse:
            self._stop_listening()
            for connection in list(self._connections):
                connection.finish()
        elif self._alive and self._listening is None:
            self._listening = _bound(self._port)
            # The system takes connections from here on; the loop picks them up once the task has run.
            self._listening.listen(512)
            self._opening = asyncio.create_task(self._accept(self._listening))
        self.bell.ring()

    async def _accept(self, sock: socket.socket) -> None:
        self._listener = await asyncio.get_running_loop().create_server(
            self._connection, sock=sock, start_serving=False
        )
        await self._listener.start_serving()

    def _stop_listening(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._listener is not None:
            self._listener.close()
        elif self._listening is not None:
            self._listening.close()
        self._listener = self._listening = self._opening = None


def _bound(port: int) -> socket.socket:
    # asyncio switches Nagle's delays off only where the protocol is spelled out.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", port))
    return sock
