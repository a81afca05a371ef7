"""Uvicorn listens, our door answers: the socket, the server's life, and what happens to open requests at its end."""

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import cast

import uvicorn
from litestar import Litestar

from herd.api.door import Door, Inlet
from herd.errors import StartupError


@contextmanager
def listening(host: str, port: int) -> Generator[socket.socket]:
    """Bind a listening socket while the body runs. Raises `StartupError` if the address cannot be had."""
    try:
        listener = _bound(host, port)
    except (OSError, UnicodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "this is no host name"
        raise StartupError(f"cannot listen on {host}:{port}: {what}", hint=_hint(error)) from error
    with listener:
        yield listener


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol spelled out, asyncio turns off Nagle's algorithm on accepted connections; else each answer waits
    # 40 ms for the client's delayed acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4096)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def http(
    app: Litestar, inlet: Inlet, listener: socket.socket, *, grace_s: float
) -> AsyncGenerator[Callable[[], None]]:
    """Serve HTTP while the body runs, and let what runs finish afterwards; yields how to cut that short."""
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(Door, inlet)),  # uvicorn only calls it
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=4096,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    def hurry() -> None:
        server.force_exit = True

    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has a flag, not an event
            await asyncio.sleep(0.01)
        yield hurry
    finally:
        server.should_exit = True
        await serving
        inlet.closed = True
        left = list(server.server_state.tasks)  # those that were not waited for; each still records its ending
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _hint(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "Stop the program that uses the port, or choose another with --port or FLEET_PORT."
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return "Ports below 1024 belong to root; choose another with --port or FLEET_PORT."
    return (
        "Give an address of this machine with --host or FLEET_HOST: 127.0.0.1 for itself alone, 0.0.0.0 for everybody."
    )


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the composition root decides when the router stops."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
