"""What the operator sees: the fleet as it is now, in the shapes that users of the peer already read with scripts."""

from typing import Any

from events.types import Model, Resident
from herd.api.listing import serves, serving
from projections.fleet import Node, Queue
from projections.view import View

GIB = 1024**3


def fleet_status(view: View, *, now: int) -> dict[str, Any]:
    """Return the body of `GET /fleet/status`. `now` is in nanoseconds since the epoch."""
    fleet = view.fleet
    return {
        "fleet": {
            "nodes_total": len(fleet.nodes),
            "nodes_online": sum(node.status == "online" for node in fleet.nodes.values()),
            "models_loaded": sum(len(node.loaded) for node in serving(fleet)),
            "requests_active": sum(node.in_flight for node in fleet.nodes.values()),
            "requests_waiting": sum(node.depth - node.in_flight for node in fleet.nodes.values()),
        },
        "nodes": [_node(node, now=now) for node in fleet.nodes.values()],
        "queues": _queues(view),
        "timestamp": now / 1e9,
    }


def fleet_queue(view: View, *, now: int) -> dict[str, Any]:
    """Return the body of `GET /fleet/queue`."""
    queues = _queues(view)
    pending = sum(queue["pending"] for queue in queues.values())
    in_flight = sum(queue["in_flight"] for queue in queues.values())
    return {
        "queue_depth": pending + in_flight,
        "pending": pending,
        "in_flight": in_flight,
        "completed": sum(queue["completed"] for queue in queues.values()),
        "failed": sum(queue["failed"] for queue in queues.values()),
        "estimated_wait_ms": _longest_wait_ms(view) if pending else None,
        "nodes_online": sum(node.status == "online" for node in view.fleet.nodes.values()),
        "queues": queues,
        "timestamp": now / 1e9,
    }


def _queues(view: View) -> dict[str, dict[str, Any]]:
    return {
        f"{node.name}:{model}": _queue(view, node, model, queue)
        for node in view.fleet.nodes.values()
        for model, queue in node.queues.items()
    }


def _queue(view: View, node: Node, model: str, queue: Queue) -> dict[str, Any]:
    stats = view.latency.stats(node.name, model)
    return {
        "node_id": node.name,
        "model": model,
        "pending": queue.waiting,
        "in_flight": queue.in_flight,
        "completed": queue.completed,
        "failed": queue.failed,
        "concurrency": node.slots,
        "request_type": "embed" if queue.kind == "embed" else "text",
        "backend": node.engine.dialect,
        "avg_latency_ms": stats.latency_mean_ms if stats else None,
        "avg_prompt_tokens": stats.prompt_tokens_mean if stats else None,
        "avg_completion_tokens": stats.completion_tokens_mean if stats else None,
        "stats_samples": stats.samples if stats else 0,
    }


def _longest_wait_ms(view: View) -> int | None:
    """Return the expected wait of the request at the end of the longest line: waves ahead of it, times the p75."""
    waits = [
        (queue.depth // node.slots) * p75
        for node in view.fleet.nodes.values()
        for model, queue in node.queues.items()
        if queue.waiting and (p75 := view.latency.service_p75_ms(node.name, model)) is not None
    ]
    return round(max(waits)) if waits else None


def _node(node: Node, *, now: int) -> dict[str, Any]:
    reading = node.reading
    entry: dict[str, Any] = {
        "node_id": node.name,
        "status": node.status,
        "hardware": {
            "memory_total_gb": node.hardware.memory_total_gib,
            "cores_physical": node.hardware.cores,
            "chip": node.hardware.chip,
            "memory_bandwidth_gbps": node.hardware.memory_bandwidth_gbps,
            "arch": node.hardware.arch,
        },
        "ollama_url": node.url,
        "engine": {
            "name": node.engine.name,
            "version": node.engine.version,
            "dialect": node.engine.dialect,
            "up": reading.engine_up,
        },
        "agent_version": node.agent_version,
        "last_heartbeat": reading.at / 1e9 if reading.at else None,
        "last_heartbeat_age_s": round((now - reading.at) / 1e9, 1) if reading.at else None,
        "clock_skew_s": reading.clock_skew_s,
        "cpu": {"cores_physical": node.hardware.cores, "utilization_pct": reading.cpu_pct},
        "ollama": {
            # Whoever is away or whose engine is down may have had models in memory; nobody knows what is there now.
            "models_loaded": [_resident(model, node, name) for name, model in node.loaded.items()]
            if serves(node)
            else [],
            "models_available": [model.name for model in node.models.values()],
            "models_available_sizes": {model.name: _gb(model) for model in node.models.values()},
            "requests_active": node.in_flight,
            "num_parallel": node.parallel,
            "max_loaded_models": node.loaded_max,
            "version": node.engine.version,
        },
    }
    if reading.memory is not None:
        memory = reading.memory
        entry["memory"] = {
            "total_gb": node.hardware.memory_total_gib,
            "used_gb": memory.used_gib,
            "available_gb": memory.available_gib,
            "pressure": memory.pressure,
            "wired_gb": memory.wired_gib,
            "compressed_gb": memory.compressed_gib,
            "swap_used_gb": memory.swap_used_gib,
            "swap_total_gb": memory.swap_total_gib,
        }
    if reading.disk is not None:
        entry["disk"] = {
            "total_gb": reading.disk.total_gib,
            "used_gb": reading.disk.used_gib,
            "available_gb": reading.disk.available_gib,
        }
    if reading.thermal is not None:
        entry["thermal"] = {
            "state": reading.thermal.state,
            "temperature_c": reading.thermal.temperature_c,
            "source": reading.thermal.source,
        }
    if reading.capacity is not None:
        entry["capacity"] = {
            "mode": reading.capacity.mode,
            "ceiling_gb": reading.capacity.ceiling_gib,
            "availability_score": reading.capacity.availability,
            "reason": reading.capacity.reason,
            "override_active": reading.capacity.override_active,
            "learning_confidence": reading.capacity.learning_confidence,
            "days_observed": reading.capacity.days_observed,
        }
    return entry


def _resident(model: Resident, node: Node, name: str) -> dict[str, Any]:
    queue = node.queues.get(name)
    return {
        "name": model.name,
        "size_gb": round(model.size_bytes / GIB, 2),
        "requests_active": queue.in_flight if queue else 0,
        "parameter_size": model.parameter_size,
        "quantization": model.quantization,
        "context_length": model.context_length,
    }


def _gb(model: Model) -> float:
    return round(model.size_bytes / 1e9, 3)
