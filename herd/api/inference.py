"""The hot path: one plain ASGI function for all routes that make a model work, past the framework's machinery."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from herd.dispatch.dispatcher import Dispatcher
from herd.dispatch.run import Headers, Job
from herd.errors import HerdError, TooLarge
from herd.wire import ROUTES, failure
from herd.wire.request import parse, tags

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

logger = logging.getLogger(__name__)

#: A larger request body is refused. Ollama has no limit, but a router has many clients and one memory.
BODY_MAX = 512 * 1024 * 1024

#: Nobody hangs up within a few milliseconds, and most of what a listener costs is its start: an answer that is faster
#: needs none.
LISTEN_AFTER_S = 0.005

#: The client's headers that a node may see. Everything else (Host, Origin, credentials, hop-by-hop) stays here.
FORWARDED = frozenset((b"content-type", b"accept", b"user-agent", b"content-encoding"))


class _Gone(Exception):
    """The client hung up before its request was complete."""


class _AsgiClient:
    """The client's end of a request, over ASGI."""

    __slots__ = ("_send", "gone")

    def __init__(self, send: "Send") -> None:
        self._send: Callable[[Any], Any] = send
        self.gone = False

    async def start(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def front_door(dispatcher: Dispatcher, house: "ASGIApp") -> "ASGIApp":
    """Return an application that answers inference itself and leaves every other path to `house`.

    Routing, exception layers and a wrapped `send` cost a framework's handler a tenth of what a request costs here.
    """

    async def enter(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and scope["path"] in ROUTES:
            await infer(dispatcher, cast("HTTPScope", scope), receive, send)
        else:
            await house(scope, receive, send)

    return enter


async def infer(dispatcher: Dispatcher, scope: "HTTPScope", receive: "Receive", send: "Send") -> None:
    """Answer an inference request."""
    client = _AsgiClient(send)
    path = scope["path"]
    if scope["method"] != "POST":
        name = (b"x-request-id", dispatcher.new_id().encode())
        await _answer(client, 405, b"text/plain", b"405 method not allowed", name, (b"allow", b"POST"))
        return
    try:
        body = await _body(receive)
        parsed = parse(path, body)
    except _Gone:
        return
    except HerdError as error:
        reply = failure.body(ROUTES[path][0].name, error)
        request = dispatcher.new_id()
        logger.info("refused a request to %s: %s", path, error.message, extra={"request_id": request})
        name = (b"x-request-id", request.encode())
        await _answer(client, reply.status, reply.content_type.encode(), reply.body, name)
        return
    headers = scope["headers"]
    job = Job(
        path=path,
        parsed=parsed,
        body=body,
        headers=tuple(pair for pair in headers if pair[0] in FORWARDED),
        client=scope["client"][0] if scope["client"] else "",
        tags=tags(parsed, _header(headers, b"x-herd-tags")),
    )
    await _until_gone(dispatcher, job, client, receive)


async def _until_gone(dispatcher: Dispatcher, job: Job, client: _AsgiClient, receive: "Receive") -> None:
    """Serve the job, and stop serving it as soon as the client hangs up."""
    loop = asyncio.get_running_loop()
    serving = asyncio.current_task()
    assert serving is not None
    listener: asyncio.Task[None] | None = None

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        client.gone = True
        serving.cancel()

    def start() -> None:
        nonlocal listener
        listener = loop.create_task(listen())

    timer = loop.call_later(LISTEN_AFTER_S, start)
    try:
        await dispatcher.serve(job, client)
    except asyncio.CancelledError:
        if not client.gone:
            raise
        serving.uncancel()
    finally:
        timer.cancel()
        if listener is not None:
            listener.cancel()


async def _body(receive: "Receive") -> bytes:
    message: Any = await receive()
    if message["type"] == "http.disconnect":
        raise _Gone
    first: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return first
    parts = [first]
    size = len(first)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > BODY_MAX:
            raise TooLarge(BODY_MAX)
        parts.append(part)
    return b"".join(parts)


def _header(headers: Any, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


async def _answer(
    client: _AsgiClient, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]
) -> None:
    headers: Headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *more]
    await client.start(status, headers)
    await client.send(body, more=False)
