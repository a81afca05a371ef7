"""Agents repeat everything every few seconds; the log should hear only of what is new."""

import asyncio
import ipaddress
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response, post
from msgspec.structs import replace

from events.store import StoreUnavailable
from events.types import (
    Capacity,
    Disk,
    Engine,
    Event,
    Hardware,
    Memory,
    Model,
    NodeDrainRequested,
    NodeInventoryChanged,
    NodeJoined,
    NodeLeft,
    NodeReported,
    NodeResidencyChanged,
    NodeStatus,
    NodeStatusChanged,
    Resident,
    Thermal,
)
from herd.wire import heartbeat as wire
from herd.wire.heartbeat import Answer, BadHeartbeat, Heartbeat
from projections.fleet import Fleet, Node, Reading, canonical

if TYPE_CHECKING:
    from herd.core import Core

logger = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", Model, Resident)

NS_PER_S = 1_000_000_000

#: A reading with every field, so that a log cut anywhere knows a node within this time: the first of each minute.
KEYFRAME_EVERY_NS = 60 * NS_PER_S

#: A model's expiry moves with each request it serves; a shift below this, seconds, tells nobody anything.
EXPIRY_STEP_S = 60.0

#: A clock that differs by less than a second is in step; network delay alone makes as much.
SKEW_STEP_S = 1.0

#: What a body may weigh: 2000 models of half a kilobyte, and room to spare.
BODY_MAX_BYTES = 4 << 20

#: The agent itself asked for the drain: it ends with that process, where an operator's drain outlives it.
BY_AGENT = "agent"

#: A machine that changes its address is silent for a while; two machines of one name are not.
MOVE_MIN_NS = 10 * NS_PER_S

#: How many moves are remembered. Names come from the network, and what comes from there must not fill the memory.
MOVES_MAX = 1000

#: How long an agent that drains or leaves waits until the log has it on disk, seconds.
DURABLE_MAX_S = 1.0

GIB = 1 << 30
OLLAMA_PORT = 11434


@post("/heartbeat", status_code=200, request_max_body_size=BODY_MAX_BYTES)
async def heartbeat(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Take an agent's report; answer with the node's standing and the work that it still has."""
    core: Core = request.app.state.core
    try:
        beat = wire.parse(await request.body())
    except BadHeartbeat as error:
        sender = request.client.host if request.client is not None else "somebody"
        logger.warning("a heartbeat from %s was refused: %s", sender, error.message)
        return _json({"error": error.message, "field": error.field}, status=error.status)
    source_ip = request.client.host if request.client is not None else ""
    node = core.view.fleet.nodes.get(beat.node_id)
    now = core.store.stamp()
    moves: Moves = request.app.state.setdefault("moves", Moves())
    farewell = 0
    for event in events_of(beat, source_ip=source_ip, node=node, now=now):
        if isinstance(event, NodeJoined) and node is not None and moves.back_at_once(event, node, now=now):
            logger.warning(
                "two machines seem to report as %s, from %s and %s; give each agent its own --node-id",
                beat.node_id, node.url, event.url,
                extra={"node_id": beat.node_id},
            )  # fmt: skip
        recorded = core.record(event)
        if isinstance(event, NodeDrainRequested | NodeLeft):
            farewell = recorded.seq
    if farewell:
        await _durable(core, farewell, beat.node_id)
    return _json(msgspec.to_builtins(answer(beat, core.view.fleet.nodes.get(beat.node_id))))


HANDLERS = (heartbeat,)


class Moves:
    """Tells two machines that report as one from a machine that moved: their address goes back and forth."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}
        self._told: set[tuple[str, frozenset[str]]] = set()

    def back_at_once(self, joined: NodeJoined, node: Node, *, now: int) -> bool:
        """Whether a node is back on the host that it left a moment ago; once for each node and pair of hosts."""
        here, there = urlsplit(joined.url).hostname or "", urlsplit(node.url).hostname or ""
        if here == there:
            return False
        before = self._before.pop(node.name, None)
        if node.status != "online" or now - node.reading.at >= MOVE_MIN_NS:
            return False
        if len(self._before) >= MOVES_MAX:
            self._before.clear()
        self._before[node.name] = there
        pair = (node.name, frozenset((here, there)))
        if here != before or pair in self._told:
            return False
        if len(self._told) >= MOVES_MAX:
            self._told.clear()
        self._told.add(pair)
        return True


async def _durable(core: "Core", seq: int, node: str) -> None:
    """Wait until a farewell is stored, but not long: an agent that stops must not hang because a disk does."""
    try:
        async with asyncio.timeout(DURABLE_MAX_S):
            await core.store.flushed(seq)
    except (TimeoutError, StoreUnavailable) as error:
        why = str(error) or f"not within {DURABLE_MAX_S:.0f} s"
        logger.warning("%s was answered before its farewell was stored: %s", node, why, extra={"node_id": node})


def answer(beat: Heartbeat, node: Node | None) -> Answer:
    """Return what the agent is told: a draining one needs to know how much work it still has."""
    status = "draining" if beat.draining or beat.leaving else "ok"
    if node is None:
        return Answer(status=status, node_status="offline", in_flight=0, waiting=0)
    return Answer(status=status, node_status=node.status, in_flight=node.in_flight, waiting=node.depth - node.in_flight)


def events_of(beat: Heartbeat, *, source_ip: str, node: Node | None, now: int) -> list[Event]:
    """Return what a heartbeat says that the view does not know. `now` is in nanoseconds since the epoch.

    `node` is the view's node of that name, None for a stranger. A stranger who says goodbye leaves no trace.
    """
    if beat.leaving:
        return _farewell(beat, node)
    if beat.engine is None and beat.ollama is None:  # the peer's agents say no more than this when they stop
        return _drained(beat, node)
    known = node or Node(name=beat.node_id)
    said = _said(beat, known, source_ip)
    found: list[Event] = []
    joined = _joined(beat, known, said)
    if node is None or joined != _joined_as(known):
        found.append(joined)
    found.append(_reported(beat, known, said, now))
    if said.models is not None and _by_name(said.models) != known.models:
        found.append(NodeInventoryChanged(node=known.name, models=said.models))
    if said.loaded is not None and _residency_differs(_by_name(said.loaded), known.loaded):
        found.append(NodeResidencyChanged(node=known.name, loaded=said.loaded))
    return found + (_drained(beat, known) if beat.draining else _standing(node, known))


def silent(
    fleet: Fleet, *, now: int, timeout_s: float, offline_s: float, listening_since: int = 0
) -> list[NodeStatusChanged]:
    """Return the nodes that have been silent for too long, with what they now are.

    `listening_since` (nanoseconds since the epoch) is when this router began to hear: before, it was
    the router that was away.
    """
    found: list[NodeStatusChanged] = []
    for node in fleet.nodes.values():
        if node.status == "offline":
            continue
        silence_ns = now - max(node.reading.at or node.joined_at, listening_since)
        status = _silent_status(node.status, silence_ns / NS_PER_S, timeout_s=timeout_s, offline_s=offline_s)
        if status != node.status:
            silence_ms = silence_ns // 1_000_000
            found.append(
                NodeStatusChanged(node=node.name, status=status, was=node.status, why="silent", silent_ms=silence_ms)
            )
    return found


def _silent_status(status: NodeStatus, silence_s: float, *, timeout_s: float, offline_s: float) -> NodeStatus:
    if silence_s > offline_s:
        return "offline"
    # A draining node gets no work anyway, and should not look as if it could have some again.
    return "degraded" if status == "online" and silence_s > timeout_s else status


def engine_url(beat: Heartbeat, source_ip: str) -> str:
    """Return the address of the engine as the router reaches it, without a trailing slash.

    A host that the agent names is right unless it means "here" (loopback, unspecified, or the agent's own LAN address,
    which the peer's agents put in place of loopback); "here" is then where the heartbeat came from.
    """
    reported = beat.reported_url or f"http://127.0.0.1:{OLLAMA_PORT}"
    parts = urlsplit(reported if "://" in reported else f"http://{reported}")
    host = parts.hostname or ""
    source = _address(source_ip)
    from_here = source is not None and source.is_loopback
    if not _means_here(host) and not (from_here and host == beat.lan_ip):
        where = host
    elif from_here:
        where = host if _is_loopback(host) else "localhost"
    else:
        where = str(source) if source is not None else beat.lan_ip or host
    port = parts.port or _default_port(reported)
    shown = f"[{where}]" if ":" in where else where
    return f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}"


def _default_port(reported: str) -> int:
    """Return the port of an address that names none, by the rule of OLLAMA_HOST."""
    if "://" not in reported:
        return OLLAMA_PORT
    return 443 if reported.startswith("https:") else 80


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _means_here(host: str) -> bool:
    address = _address(host)
    return _is_loopback(host) or (address is not None and address.is_unspecified)


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat in our own words, whichever of the two bodies it came in. None: it does not say."""

    url: str
    engine: Engine
    parallel: int
    loaded_max: int
    up: bool
    models: tuple[Model, ...] | None
    loaded: tuple[Resident, ...] | None


def _said(beat: Heartbeat, node: Node, source_ip: str) -> _Said:
    url = engine_url(beat, source_ip)
    if beat.engine is None:
        return _said_by_peer(beat.ollama or wire.PeerOllama(), node, url)
    engine = beat.engine
    return _Said(
        url=url,
        engine=Engine(dialect=engine.dialect, name=engine.name, version=engine.version),
        parallel=engine.parallel,
        loaded_max=engine.loaded_max,
        up=engine.up,
        models=None if engine.models is None else tuple(_model(model) for model in engine.models),
        loaded=None if engine.loaded is None else tuple(_resident(model) for model in engine.loaded),
    )


def _model(model: wire.Model) -> Model:
    return Model(
        name=model.name,
        size_bytes=model.size_bytes,
        digest=model.digest,
        modified_at=model.modified_at,
        format=model.format,
        family=model.family,
        families=model.families,
        parent_model=model.parent_model,
        parameter_size=model.parameter_size,
        quantization=model.quantization,
        context_length=model.context_length,
        embedding_length=model.embedding_length,
        capabilities=model.capabilities,
    )


def _resident(model: wire.Loaded) -> Resident:
    return Resident(
        name=model.name,
        size_bytes=model.size_bytes,
        size_vram_bytes=model.size_vram_bytes,
        context_length=model.context_length,
        expires_at=model.expires_at,
        digest=model.digest,
        parameter_size=model.parameter_size,
        quantization=model.quantization,
        family=model.family,
    )


def _said_by_peer(ollama: wire.PeerOllama, node: Node, url: str) -> _Said:
    up = _peer_up(ollama, node)
    return _Said(
        url=url,
        engine=Engine(version=ollama.version or ""),
        parallel=ollama.num_parallel,
        loaded_max=ollama.max_loaded_models,
        up=up,
        models=_peer_models(ollama, node) if up else None,
        loaded=tuple(_peer_resident(model) for model in ollama.models_loaded) if up else None,
    )


def _peer_up(ollama: wire.PeerOllama, node: Node) -> bool:
    """Tell whether Ollama runs: the peer's agents swallow its errors and report a machine without any model."""
    if ollama.models_available or ollama.models_loaded or ollama.version:
        return True
    return ollama.version is None and not node.models


def _peer_models(ollama: wire.PeerOllama, node: Node) -> tuple[Model, ...]:
    return tuple(
        _peer_model(ollama, name, node.models.get(canonical(name)))
        for name in ollama.models_available
        if not name.startswith("mlx:")  # served by another port of that machine, which is not the node's address
    )


def _peer_model(ollama: wire.PeerOllama, name: str, known: Model | None) -> Model:
    model = replace(known, name=name) if known is not None else Model(name=name)
    size_gb = (ollama.models_available_sizes or {}).get(name)
    if size_gb is not None:
        model = replace(model, size_bytes=round(size_gb * 1e9))
    meta = (ollama.models_available_meta or {}).get(name)
    if meta is None:
        return model
    return replace(
        model,
        digest=meta.digest,
        modified_at=meta.modified_at,
        format=meta.format,
        family=meta.family,
        families=meta.families or (),
        parent_model=meta.parent_model,
        parameter_size=meta.parameter_size,
        quantization=meta.quantization_level,
        capabilities=meta.capabilities or (),
    )


def _peer_resident(model: wire.PeerLoaded) -> Resident:
    return Resident(
        name=model.name,
        size_bytes=round(model.size_gb * GIB),
        context_length=model.context_length or 0,
        digest=model.digest,
        parameter_size=model.parameter_size,
        quantization=model.quantization,
    )


def _joined(beat: Heartbeat, node: Node, said: _Said) -> NodeJoined:
    """Return who the node is. What it cannot tell just now (its engine is down, a probe failed) is as it was."""
    same = (said.engine.dialect, said.engine.name) == (node.engine.dialect, node.engine.name)
    engine = node.engine if same and not said.engine.version else said.engine
    was = node.hardware
    memory_total = round(beat.memory.total_gb, 1) if beat.memory is not None else 0.0
    return NodeJoined(
        node=node.name,
        url=said.url,
        engine=engine,
        hardware=Hardware(
            arch=beat.arch or was.arch,
            chip=beat.chip or was.chip,
            cores=(beat.cpu.cores_physical if beat.cpu is not None else 0) or was.cores,
            memory_total_gib=memory_total or was.memory_total_gib,
            memory_bandwidth_gbps=beat.memory_bandwidth_gbps or was.memory_bandwidth_gbps,
        ),
        agent_version=beat.agent_version or node.agent_version,
        parallel=said.parallel or (node.parallel if same else 0),
        loaded_max=said.loaded_max or (node.loaded_max if same else 0),
    )


def _joined_as(node: Node) -> NodeJoined:
    return NodeJoined(
        node=node.name,
        url=node.url,
        engine=node.engine,
        hardware=node.hardware,
        agent_version=node.agent_version,
        parallel=node.parallel,
        loaded_max=node.loaded_max,
    )


def _reported(beat: Heartbeat, node: Node, said: _Said, now: int) -> NodeReported:
    """Return the reading with the fields that changed, or with all of them where a keyframe is due."""
    was = node.reading
    reading = _reading(beat, was, said, now)
    failures = reading.connection_failures or None
    # An absent capacity means "unchanged", so only a keyframe can say that the machine has stopped giving one.
    stopped_learning = was.capacity is not None and reading.capacity is None
    if not was.at or stopped_learning or now // KEYFRAME_EVERY_NS != was.at // KEYFRAME_EVERY_NS:
        return NodeReported(
            node=node.name,
            keyframe=True,
            cpu_pct=reading.cpu_pct,
            memory=reading.memory,
            thermal=reading.thermal,
            disk=reading.disk,
            capacity=reading.capacity,
            engine_up=reading.engine_up,
            clock_skew_s=reading.clock_skew_s,
            connection_failures=failures,
        )
    return NodeReported(
        node=node.name,
        cpu_pct=_unless(reading.cpu_pct, was.cpu_pct),
        memory=_unless(reading.memory, was.memory),
        thermal=_unless(reading.thermal, was.thermal),
        disk=_unless(reading.disk, was.disk),
        capacity=_unless(reading.capacity, was.capacity),
        engine_up=_unless(reading.engine_up, was.engine_up),
        clock_skew_s=_unless(reading.clock_skew_s, was.clock_skew_s),
        connection_failures=failures,
    )


def _unless(value: T, known: T) -> T | None:
    return None if value == known else value


def _reading(beat: Heartbeat, was: Reading, said: _Said, now: int) -> Reading:
    """Return the machine's state after this heartbeat, rounded to what means something, for smaller records."""
    return Reading(
        at=now,
        cpu_pct=round(beat.cpu.utilization_pct, 1) if beat.cpu is not None else was.cpu_pct,
        memory=_memory(beat.memory) if beat.memory is not None else was.memory,
        thermal=_thermal(beat.thermal) if beat.thermal is not None else was.thermal,
        disk=_disk(beat.disk) if beat.disk is not None else was.disk,
        capacity=_capacity(beat.capacity) if beat.capacity is not None else None,
        engine_up=said.up,
        clock_skew_s=_skew(beat.timestamp, was.clock_skew_s, now),
        connection_failures=beat.connection_failures,
    )


def _memory(memory: wire.Memory) -> Memory:
    return Memory(
        used_gib=round(memory.used_gb, 1),
        available_gib=round(memory.available_gb, 1),
        wired_gib=round(memory.wired_gb, 1),
        compressed_gib=round(memory.compressed_gb, 1),
        swap_used_gib=round(memory.swap_used_gb, 1),
        swap_total_gib=round(memory.swap_total_gb, 1),
        pressure=memory.pressure,
    )


def _thermal(thermal: wire.Thermal) -> Thermal:
    temperature = None if thermal.temperature_c is None else float(round(thermal.temperature_c))
    return Thermal(state=thermal.state, temperature_c=temperature, source=thermal.source)


def _disk(disk: wire.Disk) -> Disk:
    return Disk(
        total_gib=round(disk.total_gb, 1), used_gib=round(disk.used_gb, 1), available_gib=round(disk.available_gb, 1)
    )


def _capacity(capacity: wire.Capacity) -> Capacity:
    return Capacity(
        mode=capacity.mode,
        ceiling_gib=capacity.ceiling_gb,
        availability=capacity.availability_score,
        reason=capacity.reason,
        override_active=capacity.override_active,
        learning_confidence=capacity.learning_confidence,
        days_observed=capacity.days_observed,
    )


def _skew(timestamp: float, was_s: int, now: int) -> int:
    """Return by how many seconds the node's clock is ahead of ours; it moves only when it is off by a whole one."""
    if not timestamp:
        return was_s
    skew_s = timestamp - now / NS_PER_S
    return was_s if abs(skew_s - was_s) < SKEW_STEP_S else round(skew_s)


def _by_name(models: tuple[M, ...]) -> dict[str, M]:
    return {canonical(model.name): model for model in models}


def _residency_differs(loaded: Mapping[str, Resident], known: Mapping[str, Resident]) -> bool:
    if loaded.keys() != known.keys():
        return True
    for name, model in loaded.items():
        was = known[name]
        if replace(model, expires_at="") != replace(was, expires_at=""):
            return True
        if model.expires_at != was.expires_at and _shift_s(model.expires_at, was.expires_at) >= EXPIRY_STEP_S:
            return True
    return False


def _shift_s(one: str, other: str) -> float:
    """Return how far apart two dates are, in seconds; infinitely far where they cannot be compared."""
    try:
        return abs((datetime.fromisoformat(one) - datetime.fromisoformat(other)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return float("inf")


def _standing(node: Node | None, known: Node) -> list[Event]:
    """Return the way back for a node that speaks again. An operator's drain outlives silence and restarts."""
    drained = known.drained_by not in ("", BY_AGENT)
    status: NodeStatus = "draining" if drained else "online"
    if node is not None and node.status == status:
        return []
    was = None if node is None else node.status
    return [NodeStatusChanged(node=known.name, status=status, was=was, why="heartbeat")]


def _drained(beat: Heartbeat, node: Node | None) -> list[Event]:
    if node is None or node.status == "draining":
        return []
    return [NodeDrainRequested(node=beat.node_id, by=node.drained_by or BY_AGENT)]


def _farewell(beat: Heartbeat, node: Node | None) -> list[Event]:
    if node is None or node.status == "offline":
        return []
    return [NodeLeft(node=beat.node_id, why="its agent stopped")]


def _json(content: object, *, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
