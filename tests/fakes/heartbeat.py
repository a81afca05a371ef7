"""End-to-end tests introduce fake nodes to a router as an existing agent would, without running an agent."""

import time
from typing import Any

from tests.fakes.ollama import FakeOllama


def heartbeat_of(
    node: FakeOllama, node_id: str, *, memory_total_gb: float = 64.0, memory_used_gb: float = 8.0, cpu_pct: float = 5.0,
    cores: int = 8, **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    """The body of `POST /heartbeat` that an `ollama-herd` agent beside this node would send now.

    `fields` replace whole top-level fields, such as `draining=True` or `capacity={…}`.
    """
    loaded = [
        {
            "name": each.model.name, "size_gb": each.size_bytes / 2**30, "requests_active": 0,
            "parameter_size": each.model.parameter_size, "quantization": each.model.quantization,
            "context_length": each.num_ctx, "digest": each.model.digest,
        }
        for each in node.scheduler.loaded
    ]  # fmt: skip
    meta = {
        model.name: model.details | {
            "modified_at": model.modified_at, "digest": model.digest, "capabilities": list(model.capabilities)
        }
        for model in node.models.values()
    }  # fmt: skip
    ollama = {
        "models_loaded": loaded, "models_available": list(node.models),
        "models_available_sizes": {model.name: model.size_bytes / 1e9 for model in node.models.values()},
        "models_available_meta": meta, "max_loaded_models": node.scheduler.max_loaded,
        "num_parallel": node.scheduler.num_parallel, "requests_active": 0, "version": node.version,
        "backend_clients": [],
    }  # fmt: skip
    body: dict[str, Any] = {
        "node_id": node_id, "arch": "x86_64", "timestamp": time.time(),
        "cpu": {"cores_physical": cores, "utilization_pct": cpu_pct},
        "memory": {
            "total_gb": memory_total_gb, "used_gb": memory_used_gb, "available_gb": memory_total_gb - memory_used_gb,
            "pressure": "normal", "wired_gb": 0.0, "compressed_gb": 0.0, "swap_used_gb": 0.0, "swap_total_gb": 0.0,
        },
        "thermal": {"state": "nominal", "temperature_c": 45.0, "source": "fake"},
        "disk": {"total_gb": 1000.0, "used_gb": 400.0, "available_gb": 600.0},
        "ollama": ollama, "ollama_host": node.url, "lan_ip": "127.0.0.1", "draining": False, "capacity": None,
        "agent_version": "0.11.4", "connection_failures": 0, "connection_failures_total": 0, "chip": "",
        "memory_bandwidth_gbps": 0.0, "mlx_servers": [], "mlx_bind_host": "127.0.0.1",
    }  # fmt: skip
    return body | fields
