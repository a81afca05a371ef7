"""Where agents report. `herd.reports` knows what a report means; this knows what it may do to the router."""

import asyncio
import logging
import socket
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
from litestar import Request, Response, post

from events.store import StoreError
from events.types import NodeDrainRequested, NodeJoined
from herd.api.hearing import Hearing
from herd.api.state import Shared
from herd.core import Core
from herd.reports.news import events_of
from herd.reports.place import engine_url, means_one_of
from herd.wire import heartbeat as wire
from herd.wire.heartbeat import Answer, BadHeartbeat, Heartbeat
from projections.fleet import Fleet, Node

logger = logging.getLogger(__name__)

#: What a body may weigh: 2000 models of half a kilobyte, and room to spare.
BODY_MAX_BYTES = 4 << 20

#: Every decision looks at every node, and anyone who reaches the router can invent names.
NODES_MAX = 1024

#: How long an agent that drains or leaves waits until the log has it on disk, seconds.
DURABLE_MAX_S = 1.0


@post("/heartbeat", status_code=200, request_max_body_size=BODY_MAX_BYTES)
async def heartbeat(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Take an agent's report; answer with the node's standing and the work that it still has."""
    shared = Shared.of(request.app)
    core, hearing = shared.core, shared.hearing
    source_ip = request.client.host if request.client is not None else ""
    try:
        beat = wire.parse(await request.body())
        node = core.view.fleet.nodes.get(beat.node_id)
        if not beat.leaving and (beat.engine is not None or beat.ollama is not None):
            _refuse_own_address(beat, source_ip, own_port=_own_port(request))
            _refuse_more_than_fit(beat, core.view.fleet)
    except BadHeartbeat as error:
        hearing.warn_once(source_ip, error.message, "a heartbeat from %s was refused: %s", source_ip, error.message)
        return _json({"error": error.message, "field": error.field}, status=error.status)
    return _json(msgspec.to_builtins(await _take(beat, source_ip, node, core, hearing)))


HANDLERS = (heartbeat,)


async def _take(beat: Heartbeat, source_ip: str, node: Node | None, core: Core, hearing: Hearing) -> Answer:
    """Record what is new in a report. `node` is what the view knew of its sender before."""
    now = core.store.stamp()
    farewell = 0
    for event in events_of(beat, source_ip=source_ip, node=node, now=now):
        if isinstance(event, NodeJoined) and node is not None:
            hosts = hearing.moves.back_at_once(event, node, now=now)
            if hosts is not None:
                hearing.warn_once(
                    node.name, " ".join(hosts),
                    "two machines seem to report as %s, from %s and %s, and work goes to whichever spoke last; "
                    "stop the agent on one of them, or give it a name of its own with --node-id",
                    node.name, *hosts, node_id=node.name,
                )  # fmt: skip
        recorded = core.record(event)
        if beat.leaving or isinstance(event, NodeDrainRequested):
            farewell = recorded.seq
    if farewell:
        await _durable(core, farewell, beat.node_id)
    return answer(beat, core.view.fleet.nodes.get(beat.node_id))


def answer(beat: Heartbeat, node: Node | None) -> Answer:
    """Return what the agent is told: a draining one needs to know how much work it still has."""
    status = "draining" if beat.draining or beat.leaving else "ok"
    if node is None:
        return Answer(status=status, node_status="offline", in_flight=0, waiting=0)
    return Answer(status=status, node_status=node.status, in_flight=node.in_flight, waiting=node.depth - node.in_flight)


def _refuse_own_address(beat: Heartbeat, source_ip: str, *, own_port: int | None) -> None:
    """Refuse an engine that is this router, which would hand each request to itself until it has no slot left."""
    url = engine_url(beat, source_ip)
    if urlsplit(url).port != own_port or not means_one_of(url, own_hosts()):
        return
    field = "ollama_host" if beat.engine is None else "engine.url"
    raise BadHeartbeat(
        f"{field}: {url} is this router itself, not an engine; "
        "point the agent at its Ollama with --ollama-host or FLEET_NODE_OLLAMA_HOST",
        field=field,
    )


def _own_port(request: Request[Any, Any, Any]) -> int | None:
    """Return the port at which this request came in."""
    server = request.scope["server"]
    return server[1] if server is not None else None


def own_hosts() -> set[str]:
    """Return the addresses of this machine, and its name."""
    addresses = (each.address.partition("%")[0] for of_one in psutil.net_if_addrs().values() for each in of_one)
    return {*addresses, socket.gethostname().lower()}


def _refuse_more_than_fit(beat: Heartbeat, fleet: Fleet) -> None:
    if beat.node_id in fleet.nodes or len(fleet.nodes) < NODES_MAX:
        return
    raise BadHeartbeat(
        f"node_id: it is a new one, and the router knows {NODES_MAX} nodes already, as many as it takes; "
        "stop agents that are not needed, or wait until silent nodes are forgotten",
        field="node_id",
    )


async def _durable(core: Core, seq: int, node: str) -> None:
    """Wait until a farewell is stored, but not long: an agent that stops must not hang because a disk does."""
    try:
        async with asyncio.timeout(DURABLE_MAX_S):
            await core.store.flushed(seq)
    except (TimeoutError, StoreError) as error:
        why = str(error) or f"not within {DURABLE_MAX_S:.0f} s"
        logger.warning("%s was answered before its farewell was stored: %s", node, why, extra={"node_id": node})


def _json(content: object, *, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
