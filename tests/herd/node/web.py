"""A small real HTTP server, for tests in which the other side of the wire must be one."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Handler = Callable[[str, str, bytes], Awaitable[tuple[int, Any]]]
"""Takes method, path and body; returns status and JSON, or bytes to send as they are."""


@asynccontextmanager
async def served(handler: Handler, port: int = 0) -> AsyncGenerator[str]:
    """Serve on loopback; yields the base URL. Open connections end with it."""
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status, content = await handler(method, path, body)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n" % (status, len(raw)) + raw)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writers.discard(writer)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in set(writers):
            writer.close()
        await server.wait_closed()


async def eventually(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return as soon as a condition holds that no event announces."""
    for _ in range(round(timeout_s / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")
