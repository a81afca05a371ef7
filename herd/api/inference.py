"""What a request on an inference path asks, put to the dispatcher; what is wrong with it is said in its own dialect."""

from collections.abc import Callable, Coroutine
from typing import Any

from herd.api.door import Exchange
from herd.dispatch.dispatcher import Dispatcher
from herd.dispatch.run import ClientGone, Job
from herd.errors import HerdError, RouterLoop
from herd.wire import ROUTES
from herd.wire.request import Parsed, parse, tags

#: The client's headers that a node may see. Everything else (Host, Origin, credentials, hop-by-hop) stays here.
FORWARDED = frozenset((b"content-type", b"accept", b"user-agent"))


def inference(dispatcher: Dispatcher, *, name: str) -> Callable[[Exchange], Coroutine[Any, Any, None]]:
    """Return the function that answers inference requests.

    `name` marks what this router sends to nodes, so that it knows what comes back to it.
    """
    via = (b"via", b"1.1 " + name.encode("ascii"))

    async def answer(exchange: Exchange) -> None:
        if exchange.method != b"POST":
            await _not_allowed(dispatcher, exchange)
            return
        forwarded: list[tuple[bytes, bytes]] = [via]
        named = None
        refusal = exchange.refusal
        for header in exchange.headers:
            field = header[0]
            if field in FORWARDED:
                forwarded.append(header)
            elif field == b"x-herd-tags":
                named = header[1].decode("latin-1")
            elif field == b"via" and via[1] in header[1]:
                refusal = RouterLoop()
        path = exchange.path
        body = exchange.body
        try:
            if refusal is not None:
                raise refusal
            parsed = parse(path, body)
        except HerdError as error:
            refusal = error.bare()
            parsed = _unread(path)
        job = Job(
            path=path,
            parsed=parsed,
            body=body,
            headers=tuple(forwarded),
            client=exchange.client,
            tags=tags(parsed, named),
        )
        await dispatcher.serve(job, exchange, refusal)

    return answer


def _unread(path: str) -> Parsed:
    """Return what is known of a request whose body was not, or could not be, read."""
    dialect, route = ROUTES[path]
    return Parsed(
        path=path,
        kind=route.kind,
        dialect=dialect.name,
        model="",
        asked="",
        streaming=route.streaming,
        tokens_estimated=0,
    )


async def _not_allowed(dispatcher: Dispatcher, exchange: Exchange) -> None:
    body = b"405 method not allowed"
    headers = [
        (b"content-type", b"text/plain"),
        (b"allow", b"POST"),
        (b"x-request-id", dispatcher.new_id().encode()),
    ]
    try:
        exchange.start(405, headers, len(body))
        await exchange.send(b"" if exchange.method == b"HEAD" else body, more=False)
    except ClientGone:
        pass
