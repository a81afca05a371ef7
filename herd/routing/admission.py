"""Who may serve at all is a question of facts, not of points: each refused node gets its reason with the numbers."""

from collections.abc import Mapping

from events.types import Eliminated, Elimination
from herd.routing.footprint import GIB, available_gib, need_gib
from herd.routing.policy import Ask
from projections.fleet import UNKNOWN, Fleet, Node, Size

#: A machine whose owner leaves us less than this is left alone.
AVAILABILITY_MIN = 0.2
#: Families whose models only embed. Needed for engines too old to report capabilities.
EMBEDDING_FAMILIES = frozenset({"bert", "nomic-bert"})

_MODES: Mapping[str, Elimination] = {"paused": "paused", "bootstrap": "bootstrap"}


def admit(fleet: Fleet, ask: Ask, *, now: int) -> tuple[list[Node], list[Eliminated]]:
    """Part the fleet into nodes that may serve and nodes that may not, both in order of name.

    A node has the first reason that applies: first the machine, then the model, then the memory. Degraded nodes may
    serve. What is unknown (capabilities, sizes, memory) does not refuse. `now` is in nanoseconds since the epoch.
    """
    admitted: list[Node] = []
    eliminated: list[Eliminated] = []
    nodes = fleet.nodes
    size = fleet.sizes.get(ask.model, UNKNOWN)
    for name in sorted(nodes):
        node = nodes[name]
        refused = _refuse_machine(node, ask, now) or refuse_model(node, ask)
        if refused is None and ask.model not in node.loaded:
            refused = _refuse_load(node, ask, size)
        if refused is None:
            admitted.append(node)
        else:
            eliminated.append(refused)
    return admitted, eliminated


def _refuse_machine(node: Node, ask: Ask, now: int) -> Eliminated | None:
    reading = node.reading
    if node.status == "offline":
        heard = f"its last report is {_age_s(node, now):.0f} s old" if reading.at else "it has never reported"
        return _no(node, "offline", heard)
    if node.status == "draining":
        return _no(node, "draining", f"it takes no new requests; still to finish: {node.depth}")
    if not reading.engine_up:
        return _no(node, "engine_down", f"{node.engine.name} did not answer its agent {_age_s(node, now):.0f} s ago")
    if node.name in ask.excluded:
        return _no(node, "excluded", f"this request failed here before; this is attempt {ask.attempt}")
    return _refuse_capacity(node) if reading.capacity is not None else None


def _refuse_capacity(node: Node) -> Eliminated | None:
    capacity = node.reading.capacity
    assert capacity is not None
    mode = _MODES.get(capacity.mode)
    if mode is not None:
        learnt = f"availability {capacity.availability:.2f}, {capacity.days_observed:.1f} days observed"
        return _no(node, mode, f"its capacity mode is {mode}: {learnt}")
    if capacity.availability < AVAILABILITY_MIN:
        return _no(node, "unavailable", f"availability {capacity.availability:.2f} is below {AVAILABILITY_MIN:.2f}")
    return None


def refuse_model(node: Node, ask: Ask) -> Eliminated | None:
    """Return why a node's copy of the model cannot do what is asked, however the node is; None if it can."""
    model = node.models.get(ask.model)
    if model is None:
        resident = node.loaded.get(ask.model)
        if resident is None:
            return _no(node, "model_absent", f"{ask.model} is not among its models ({len(node.models)})")
        can, family = (), resident.family
    else:
        can, family = model.capabilities, model.family
    if can:
        lacking = _lacking(can, ask, node)
        if lacking is not None:
            return _no(node, "capability", f"{ask.model} offers {', '.join(can)}; the request needs {lacking}")
    elif ask.kind != "embed" and family in EMBEDDING_FAMILIES:
        return _no(node, "capability", f"{ask.model} is of the family {family}, which only embeds")
    return None


def _lacking(can: tuple[str, ...], ask: Ask, node: Node) -> str | None:
    """Return the first thing that the request needs and the model does not offer."""
    if ask.kind == "embed":
        # Ollama makes vectors with chat models too, if their client insists; other servers and image models do not.
        if "embedding" not in can and not ("completion" in can and node.engine.dialect == "ollama"):
            return "embedding"
    elif "completion" not in can and "embedding" in can:
        return "completion"
    for need in ask.needs:
        if need not in can:
            return need
    return None


def _refuse_load(node: Node, ask: Ask, size: Size) -> Eliminated | None:
    """Refuse a node that would first have to load the model, and cannot."""
    memory = node.reading.memory
    if memory is None:
        return None
    if memory.pressure == "critical":
        left = f"{memory.available_gib:.1f} GiB available"
        return _no(node, "memory_critical", f"its memory pressure is critical ({left}) and the model is not loaded")
    need = need_gib(size, node, ask.model)
    available = available_gib(node)
    if need is None or available is None or available >= need:
        return None
    # An engine makes room by itself: it unloads models that nobody uses. Without this a machine that is full of
    # yesterday's model would refuse today's.
    idle = _idle_gib(node)
    within = available_gib(node, evictable_gib=idle)
    if within is not None and within >= need:
        return None
    room = f"{available:.1f} GiB available, {idle:.1f} GiB more in idle models"
    return _no(node, "memory_short", f"the model needs {need:.1f} GiB; {room}")


def _idle_gib(node: Node) -> float:
    queues = node.queues
    idle = sum(
        resident.size_bytes
        for name, resident in node.loaded.items()
        if (queue := queues.get(name)) is None or queue.depth == 0
    )
    return idle / GIB


def _age_s(node: Node, now: int) -> float:
    return max(0, now - node.reading.at) / 1e9


def _no(node: Node, reason: Elimination, detail: str) -> Eliminated:
    return Eliminated(node=node.name, reason=reason, detail=detail)
