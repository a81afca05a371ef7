"""The routes that show the fleet: to clients as one Ollama, to its operator as what it is, all from the view."""

import asyncio
from typing import Any, get_args

import msgspec
from litestar import HttpMethod, MediaType, get, route

from events.store import StoreError
from herd import __version__
from herd.api import listing, status
from herd.api.state import AnyRequest, Shared
from herd.errors import BadRequest
from projections.traces import Status

READ = [HttpMethod.GET, HttpMethod.HEAD]

#: How long a reader of traces waits for the newest to be stored, in seconds; then it gets what there is.
FRESHNESS_WAIT_S = 1.0
TRACES_DEFAULT = 50
TRACES_MAX = 1000
STATUSES: tuple[Status, ...] = get_args(Status)


@route("/", http_method=READ, media_type=MediaType.TEXT)
async def root() -> str:
    """Answer as Ollama does, whatever the state of the fleet: the ollama command asks this first."""
    return "Ollama is running"


@route("/api/version", http_method=READ)
async def version(request: AnyRequest) -> dict[str, str]:
    """Return the lowest Ollama version among the live nodes."""
    return {"version": listing.version(Shared.of(request.app).core.view.fleet), "herd_version": __version__}


@route("/api/tags", http_method=READ)
async def tags(request: AnyRequest) -> dict[str, Any]:
    """List every model on the disks of the fleet."""
    return listing.tags(Shared.of(request.app).core.view.fleet)


@get("/api/ps")
async def ps(request: AnyRequest) -> dict[str, Any]:
    """List every model in the memory of the fleet."""
    return listing.ps(Shared.of(request.app).core.view.fleet)


@get("/v1/models")
async def openai_models(request: AnyRequest) -> dict[str, Any]:
    """List every model of the fleet in OpenAI's shape."""
    return listing.openai_models(Shared.of(request.app).core.view.fleet)


@get("/fleet/status")
async def fleet_status(request: AnyRequest) -> dict[str, Any]:
    """Return every node with its readings, models and queues."""
    core = Shared.of(request.app).core
    return status.fleet_status(core.view, now=core.store.stamp())


@get("/fleet/queue")
async def fleet_queue(request: AnyRequest) -> dict[str, Any]:
    """Return the queues of the fleet and what they expect."""
    core = Shared.of(request.app).core
    return status.fleet_queue(core.view, now=core.store.stamp())


@get("/healthz")
async def healthz(request: AnyRequest) -> dict[str, Any]:
    """Tell whether the router works and whether its log can be written.

    The status code is 200 as long as requests are served: a full disk is trouble for the operator, not for clients.
    """
    core = Shared.of(request.app).core
    log = core.store.state
    return {
        "status": "ok" if log.failing_since is None and not log.failure else "degraded",
        "version": __version__,
        "nodes_online": sum(node.status == "online" for node in core.view.fleet.nodes.values()),
        "requests_open": len(core.view.fleet.requests),
        "log": msgspec.to_builtins(log),
    }


@get("/dashboard/api/traces")
async def traces(request: AnyRequest) -> dict[str, Any]:
    """Return the newest request traces, newest first; filters: `limit`, `status`, `model`, `node`."""
    shared = Shared.of(request.app)
    query = request.query_params
    limit = _limit(query.get("limit"))
    try:
        async with asyncio.timeout(FRESHNESS_WAIT_S):
            await shared.core.store.flushed(shared.core.view.seq)
    except (TimeoutError, StoreError):
        pass  # the newest are not stored yet; /healthz says why
    found = await asyncio.to_thread(
        shared.traces.recent,
        limit,
        status=_status(query.get("status")),
        model=query.get("model"),
        node=query.get("node"),
    )
    return {"traces": msgspec.to_builtins(found)}


def _limit(given: str | None) -> int:
    if given is None:
        return TRACES_DEFAULT
    limit = int(given) if given.isascii() and given.isdigit() and len(given) <= 9 else 0
    if limit < 1:
        raise BadRequest(f"limit must be a whole number from 1 to {TRACES_MAX}, not {given[:50]!r}")
    return min(limit, TRACES_MAX)  # some ask for more: those are all that we give


def _status(given: str | None) -> Status | None:
    if given is None:
        return None
    for known in STATUSES:
        if known == given:
            return known
    raise BadRequest(f"status must be one of {', '.join(STATUSES)}, not {given[:50]!r}")


HANDLERS = (root, version, tags, ps, openai_models, fleet_status, fleet_queue, healthz, traces)
