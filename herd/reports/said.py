"""Two kinds of agents say the same in two ways; what the log hears is in one."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import asdict, replace

from events.types import Engine, Model, Resident
from herd.reports.place import engine_url
from herd.wire import heartbeat as wire
from herd.wire.heartbeat import Heartbeat
from projections.fleet import Node, canonical

F = TypeVar("F", Model, Resident)

GIB = 1 << 30


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat in our own words, whichever of the two bodies it came in. None: it does not say."""

    url: str
    engine: Engine
    parallel: int
    loaded_max: int
    up: bool
    models: tuple[Model, ...] | None
    loaded: tuple[Resident, ...] | None


def in_our_words(beat: Heartbeat, node: Node, source_ip: str) -> Said:
    """Return what a heartbeat says of its engine. `node` is what is known of it, `source_ip` where it came from."""
    url = engine_url(beat, source_ip)
    if beat.engine is None:
        return _said_by_peer(beat.ollama or wire.PeerOllama(), node, url)
    engine = beat.engine
    return Said(
        url=url,
        engine=Engine(dialect=engine.dialect, name=engine.name, version=engine.version),
        parallel=engine.parallel,
        loaded_max=engine.loaded_max,
        up=engine.up,
        models=None if engine.models is None else _facts(engine.models, Model),
        loaded=None if engine.loaded is None else _facts(engine.loaded, Resident),
    )


def _facts(said: Sequence[msgspec.Struct], kind: type[F]) -> tuple[F, ...]:
    """Return what an agent lists as parts of events, which have the fields that our heartbeat has."""
    return tuple(kind(**asdict(each)) for each in said)


def _said_by_peer(ollama: wire.PeerOllama, node: Node, url: str) -> Said:
    up = _peer_up(ollama, node)
    return Said(
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
