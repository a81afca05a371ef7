"""Agents repeat everything every few seconds; the log should hear only of what is new."""

from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

from msgspec.structs import replace

from events.types import (
    Capacity,
    Disk,
    Event,
    Hardware,
    Memory,
    Model,
    NodeDrainRequested,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeResidencyChanged,
    NodeStatus,
    NodeStatusChanged,
    Resident,
    Thermal,
)
from herd.reports.said import Said, in_our_words
from herd.wire import heartbeat as wire
from herd.wire.heartbeat import Heartbeat
from projections.fleet import Node, Reading, canonical

T = TypeVar("T")
M = TypeVar("M", Model, Resident)

NS_PER_S = 1_000_000_000

#: A reading with every field, so that a log cut anywhere knows a node within this time: the first of each minute.
KEYFRAME_EVERY_NS = 60 * NS_PER_S

#: A model's expiry moves with each request it serves; a shift below this, seconds, tells nobody anything.
EXPIRY_STEP_S = 60.0

#: A clock that differs by less than a second is in step; network delay alone makes as much.
SKEW_STEP_S = 1.0

#: The agent itself asked for the drain: it ends with that process, where an operator's drain outlives it.
BY_AGENT = "agent"


def events_of(beat: Heartbeat, *, source_ip: str, node: Node | None, now: int) -> list[Event]:
    """Return what a heartbeat says that the view does not know. `now` is in nanoseconds since the epoch.

    `node` is the view's node of that name, None for a stranger. A stranger who says goodbye leaves no trace.
    """
    if beat.leaving:
        return _farewell(node)
    if beat.engine is None and beat.ollama is None:  # the peer's agents say no more than this when they stop
        return _drained(beat, node)
    known = node or Node(name=beat.node_id)
    said = in_our_words(beat, known, source_ip)
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


def drained_by_operator(node: Node) -> bool:
    """Tell whether somebody asked that the node gets no work, until he says otherwise."""
    return node.drained_by not in ("", BY_AGENT)


def _joined(beat: Heartbeat, node: Node, said: Said) -> NodeJoined:
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


def _reported(beat: Heartbeat, node: Node, said: Said, now: int) -> NodeReported:
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


def _reading(beat: Heartbeat, was: Reading, said: Said, now: int) -> Reading:
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
    status: NodeStatus = "draining" if drained_by_operator(known) else "online"
    if node is not None and node.status == status:
        return []
    was = None if node is None else node.status
    return [NodeStatusChanged(node=known.name, status=status, was=was, why="heartbeat")]


def _drained(beat: Heartbeat, node: Node | None) -> list[Event]:
    if node is None or node.status == "draining":
        return []
    return [NodeDrainRequested(node=beat.node_id, by=node.drained_by or BY_AGENT)]


def _farewell(node: Node | None) -> list[Event]:
    if node is None or node.status == "offline":
        return []
    # It has not left the fleet: a laptop that sleeps or an agent that is restarted is expected back, and until then its
    # models cannot be served now, which is not the same as not being known.
    return [NodeStatusChanged(node=node.name, status="offline", was=node.status, why="its agent stopped")]
