"""The fleet shows itself as one Ollama: its models on disk and in memory merged by name, answered from the view."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from events.types import Model, Resident
from projections.fleet import Fleet, Node, canonical

#: What is answered while no Ollama node is known: the level of the native API that our own translation speaks.
VERSION_SPOKEN = "0.9.0"

#: A version as engines spell it: `0.12.3`, `v0.12.3`, `0.12.3-rc1`. What follows the numbers says nothing that we need.
VERSION = re.compile(r"v?(?P<numbers>[0-9]{1,6}(\.[0-9]{1,6}){0,3})([-+][0-9A-Za-z.+-]{0,64})?")

#: When a model leaves memory whose engine names no time: never, as Ollama says it of a model with `keep_alive` -1. A
#: time that is past would show as a model that is just being unloaded.
FOREVER = "2318-01-01T00:00:00Z"


def tags(fleet: Fleet) -> dict[str, Any]:
    """Return the body of `GET /api/tags`: each model once, newest first, with the nodes that have it."""
    holders: dict[str, list[tuple[Node, Model]]] = {}
    for node in serving(fleet):
        for name, model in node.models.items():
            holders.setdefault(name, []).append((node, model))
    entries = [_tag(copies) for copies in holders.values()]
    entries.sort(key=lambda entry: str(entry["modified_at"]), reverse=True)
    return {"models": entries}


def ps(fleet: Fleet) -> dict[str, Any]:
    """Return the body of `GET /api/ps`: each loaded model once, the one that stays longest first."""
    holders: dict[str, list[tuple[Node, Resident]]] = {}
    for node in serving(fleet):
        for name, model in node.loaded.items():
            holders.setdefault(name, []).append((node, model))
    entries = [_loaded(copies) for copies in holders.values()]
    entries.sort(key=lambda entry: str(entry["expires_at"]), reverse=True)
    return {"models": entries}


def openai_models(fleet: Fleet) -> dict[str, Any]:
    """Return the body of `GET /v1/models`, sorted by id."""
    found: dict[str, int] = {}
    for node in serving(fleet):
        for model in node.models.values():
            shown = display(model.name)
            found[shown] = max(found.get(shown, 0), _unix(model.modified_at, node))
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": created, "owned_by": _owner(name)}
            for name, created in sorted(found.items())
        ],
    }


def version(fleet: Fleet) -> str:
    """Return the lowest Ollama version among the nodes that serve: what every node can do, in dotted whole numbers.

    Open WebUI reads each part as a whole number, so what is not spelled like a version is not considered.
    """
    spoken = [VERSION.fullmatch(node.engine.version) for node in serving(fleet) if node.engine.dialect == "ollama"]
    numbers = [match["numbers"] for match in spoken if match is not None]
    return min(numbers, key=_ordered, default=VERSION_SPOKEN)


def serves(node: Node) -> bool:
    """Tell whether anything answers on a node: one whose engine is down has its models in nobody's reach."""
    return node.status != "offline" and node.reading.engine_up


def serving(fleet: Fleet) -> Iterable[Node]:
    """Yield the nodes on which an engine answers."""
    return filter(serves, fleet.nodes.values())


def display(name: str) -> str:
    """Return a model name as Ollama lists it: its own spelling, always with a tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _tag(copies: list[tuple[Node, Model]]) -> dict[str, Any]:
    # Copies may differ (a node that has not pulled the newest); the newest speaks for the name.
    node, model = max(copies, key=lambda copy: copy[1].modified_at)
    name = display(model.name)
    entry: dict[str, Any] = {
        "name": name,
        "model": name,
        "modified_at": _modified(model, node),
        "size": model.size_bytes,
        "digest": model.digest or _stand_in_digest(name),
        "details": {
            "parent_model": model.parent_model,
            "format": model.format,
            "family": model.family,
            "families": list(model.families) or ([model.family] if model.family else []),
            "parameter_size": model.parameter_size,
            "quantization_level": model.quantization,
            "fleet_nodes": sorted(holder.name for holder, _ in copies),
        },
    }
    if model.capabilities:
        entry["capabilities"] = list(model.capabilities)
    return entry


def _loaded(copies: list[tuple[Node, Resident]]) -> dict[str, Any]:
    node, model = max(copies, key=lambda copy: _expiry(copy[1]))
    name = display(model.name)
    on_disk = node.models.get(canonical(name), Model(name=name))
    return {
        "name": name,
        "model": name,
        "size": model.size_bytes,
        "digest": model.digest or on_disk.digest or _stand_in_digest(name),
        "details": {
            "parent_model": on_disk.parent_model,
            "format": on_disk.format,
            "family": model.family or on_disk.family,
            "families": list(on_disk.families) or ([on_disk.family] if on_disk.family else []),
            "parameter_size": model.parameter_size or on_disk.parameter_size,
            "quantization_level": model.quantization or on_disk.quantization,
        },
        "expires_at": _expiry(model),
        "size_vram": model.size_vram_bytes,
        **_context(copies),
        "fleet_node": node.name,
        "fleet_nodes": sorted(holder.name for holder, _ in copies),
    }


def _context(copies: Sequence[tuple[Node, Resident]]) -> dict[str, int]:
    """Return the length that every copy can do; nothing where the engines, such as Ollama before 0.10, do not say."""
    known = [copy.context_length for _, copy in copies if copy.context_length]
    return {"context_length": min(known)} if known else {}


def _expiry(model: Resident) -> str:
    return model.expires_at or FOREVER


def _modified(model: Model, node: Node) -> str:
    if model.modified_at:
        return model.modified_at
    return datetime.fromtimestamp(node.joined_at / 1e9, UTC).isoformat().replace("+00:00", "Z")


def _unix(modified_at: str, node: Node) -> int:
    try:
        return int(datetime.fromisoformat(modified_at).timestamp())
    except (ValueError, OverflowError):
        return node.joined_at // 1_000_000_000


def _stand_in_digest(name: str) -> str:
    # The ollama command cuts twelve characters off every digest and dies on a shorter one.
    return hashlib.sha256(f"herd:{name}".encode()).hexdigest()


def _owner(name: str) -> str:
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else "library"


def _ordered(numbers: str) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers.split("."))
