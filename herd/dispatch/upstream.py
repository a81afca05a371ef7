"""A new connection costs as much as a request, and looking through idle ones more, so each node has a stack of them."""

import asyncio
import errno
from contextlib import suppress
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

from herd.dispatch.http1 import Answer, Body, Connection, Headers, request_head
from herd.dispatch.outbox import Outbox
from herd.errors import NodeUnreachable, Overloaded

#: Closing is a matter of the next turns of the loop; nothing may hold up a router that stops.
CLOSE_MAX_S = 2.0


class Address(NamedTuple):
    """What a node's URL says: where to connect, what to send as `Host`, and what comes before each path."""

    host: str
    port: int
    authority: bytes
    prefix: str


def address_of(url: str) -> Address:
    """Take a node's URL apart. Raises `NodeUnreachable` when it is not `http://host`, with or without port and path."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("it must be http://host:port")
        if ".." in parts.hostname or parts.hostname.startswith("."):
            raise ValueError("a part of its name is empty")
        host = parts.hostname.replace("%25", "%")
        port = parts.port or 80
        bare = host.partition("%")[0]  # a zone ("fe80::1%eth0") means something on this machine only
        name = f"[{bare}]" if ":" in bare else bare
        # Plain names do without the codec: it is loaded from a file, for which there may be no descriptor left.
        named = name if port == 80 else f"{name}:{port}"
        authority = named.encode("ascii" if named.isascii() else "idna")
    except ValueError as error:
        raise NodeUnreachable(f"{url!r} is not the address of a node: {error}", cause="connect") from error
    return Address(host, port, authority, parts.path.rstrip("/"))


class Upstream:
    """The router's connections to its nodes. It follows no redirects and speaks plain HTTP/1.1 only."""

    def __init__(
        self, *, connect_timeout_s: float, read_timeout_s: float, idle_max: int = 256, idle_timeout_s: float = 60.0
    ) -> None:
        """Keep up to `idle_max` idle connections per node, each closed after one to two times `idle_timeout_s`.

        `read_timeout_s` is how long a node may be silent, before its answer and within.
        """
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._idle_max = idle_max
        self._idle_timeout_s = idle_timeout_s
        self._outbox = Outbox()
        self._nodes: dict[str, _Node] = {}
        self.open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(
        self, url: str, method: str, path: str, headers: Headers, body: Body, *, fresh: bool = False
    ) -> Answer:
        """Send a request to the node at base `url` and return its answer when the head is there.

        `headers` are sent as they are, after our `Host` and with our `Content-Length`; `path` includes the query.
        `fresh` avoids idle connections. When a node closes an idle connection at the moment we use it, before a byte of
        an answer, the request is sent once more on a new one. `body` must not change before the answer has ended. When
        cancelled, the connection is closed.

        Raises `NodeUnreachable` (connect: not reached within the connect timeout, or no http:// address; reset: gone
        before the head was whole; protocol: no HTTP), `NodeTimeout`, and `ValueError` as `request_head` does.
        """
        node = self._nodes.get(url) or self._locate(url)
        head = request_head(method, node.address.prefix + path, node.address.authority, headers, len(body))
        bodiless = method == "HEAD"
        connection = None if fresh else node.take()
        if connection is not None:
            answer = connection.send(head, body, bodiless=bodiless)
            try:
                await answer.head()
            except NodeUnreachable:
                if answer.heard:
                    raise
            else:
                return answer
        connection = await self._connect(node)
        answer = connection.send(head, body, bodiless=bodiless)
        await answer.head()
        return answer

    def idle(self, url: str) -> int:
        """Return how many connections to a node wait for work."""
        node = self._nodes.get(url)
        return len(node.idle) if node else 0

    def forget(self, url: str) -> None:
        """Close the idle connections of a node; those at work close after their answers."""
        node = self._nodes.pop(url, None)
        if node is not None:
            for connection in node.idle:
                connection.close()

    async def close(self) -> None:
        """Close every connection and wait (a moment) until they are closed. Answers under way fail as reset."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        connections = list(self.open)
        for connection in connections:
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_MAX_S):
                await asyncio.gather(*(connection.gone for connection in connections))

    def _locate(self, url: str) -> "_Node":
        node = self._nodes[url] = _Node(url)
        return node

    async def _connect(self, node: "_Node") -> Connection:
        def connection() -> Connection:
            return Connection(
                node.url,
                self._outbox,
                silence_max_s=self._read_timeout_s,
                idle=partial(self._give_back, node),
                lost=partial(self._drop, node),
            )

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, made = await loop.create_connection(connection, node.address.host, node.address.port)
        except TimeoutError as error:
            seconds = f"{self._connect_timeout_s:g} s"
            raise NodeUnreachable(f"{node.url} took no connection within {seconds}", cause="connect") from error
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise Overloaded(
                    "the router has no file descriptor left for a connection to a node",
                    hint="Raise the limit (ulimit -n, or LimitNOFILE= of the service).",
                ) from error
            raise NodeUnreachable(f"{node.url} cannot be reached: {error}", cause="connect") from error
        if self._closed:
            made.close()
            raise NodeUnreachable(f"{node.url} was not asked: the router is stopping", cause="connect")
        # Not in connection_made: when cancelled, uvloop closes what it made without calling connection_lost.
        if not made.gone.done():
            self.open.add(made)
        return made

    def _give_back(self, node: "_Node", connection: Connection) -> None:
        if len(node.idle) >= self._idle_max or self._nodes.get(node.url) is not node:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        node.idle[connection] = loop.time()
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._idle_timeout_s, self._sweep)

    def _drop(self, node: "_Node", connection: Connection) -> None:
        node.idle.pop(connection, None)
        self.open.discard(connection)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        latest = loop.time() - self._idle_timeout_s
        for node in self._nodes.values():
            for connection, since in node.idle.items():
                if since > latest:
                    break
                connection.close()
        idle = any(node.idle for node in self._nodes.values())
        self._sweeper = loop.call_later(self._idle_timeout_s, self._sweep) if idle else None


class _Node:
    """Where a node is, and the connections to it that wait for work."""

    __slots__ = ("address", "idle", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = address_of(url)
        # A dict is a stack out of which the node's own hang-ups can be taken: the last, and any one, in O(1).
        self.idle: dict[Connection, float] = {}

    def take(self) -> Connection | None:
        """Return the connection used last, so that those beyond the need grow old and are closed."""
        return self.idle.popitem()[0] if self.idle else None
