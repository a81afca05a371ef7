"""The live view of the machines and of what each is doing: all that a routing decision may look at."""

from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Any, Literal

import msgspec
from immutables import Map
from msgspec.structs import replace

from events.recorded import Recorded
from events.types import (
    Capacity,
    Disk,
    Engine,
    Event,
    Hardware,
    Kind,
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
    RequestAttemptFailed,
    RequestDispatched,
    RequestEnqueued,
    RequestFinished,
    RequestReceived,
    Resident,
    Thermal,
)
from projections.projection import Projection

# The states below keep out of the garbage collector's sight (gc=False): each is built of earlier values only, so that
# no cycle can arise, and the collector need not walk the fleet again and again.

#: Ollama's own default since 0.10: one request at a time per loaded model.
PARALLEL_DEFAULT = 1


class Queue(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The line for one model on one node. Counts of ended attempts are since the beginning of the log."""

    kind: Kind = "chat"
    waiting: int = 0
    in_flight: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def depth(self) -> int:
        """Requests that wait or run."""
        return self.waiting + self.in_flight


class Reading(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The newest known value of everything that a node measures about itself."""

    at: int = 0
    """When the newest report arrived, nanoseconds since the epoch; 0 = never."""
    cpu_pct: float = 0.0
    memory: Memory | None = None
    thermal: Thermal | None = None
    disk: Disk | None = None
    capacity: Capacity | None = None
    """None on machines that are always at our service."""
    engine_up: bool = True
    clock_skew_s: int = 0
    connection_failures: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One machine with its engine."""

    name: str
    url: str = ""
    engine: Engine = Engine()
    hardware: Hardware = Hardware()
    agent_version: str = ""
    parallel: int = 0
    loaded_max: int = 0
    status: NodeStatus = "offline"
    drained_by: str = ""
    """Who asked that it gets no new work, until it is online again; empty when nobody did."""
    joined_at: int = 0
    reading: Reading = Reading()
    models: dict[str, Model] = {}
    """On disk, by canonical name."""
    loaded: dict[str, Resident] = {}
    """In memory, by canonical name."""
    unloaded_at: dict[str, int] = {}
    """When a model that was in memory was last seen to be gone, nanoseconds since the epoch."""
    queues: dict[str, Queue] = {}
    """By canonical model name."""
    in_flight: int = 0
    """Requests running on this machine, whatever their model: the sum over its queues, as `depth` is."""
    depth: int = 0
    """Requests waiting or running on this machine, whatever their model. Every decision asks every node for it."""
    left: bool = False
    """It said goodbye, or was given up: unless it is heard of again, it is forgotten with its last request."""

    @property
    def slots(self) -> int:
        """Requests that one loaded model serves at once here."""
        return self.parallel or PARALLEL_DEFAULT

    def has(self, model: str) -> bool:
        """Whether the model is on disk or in memory here."""
        return model in self.models or model in self.loaded


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that has no ending yet."""

    received_seq: int
    received_at: int
    kind: Kind
    phase: Literal["received", "waiting", "running"] = "received"
    node: str | None = None
    model: str = ""
    attempt: int = 0


class Size(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the fleet knows of the size of one model. Zero means that nobody has reported it."""

    resident_bytes: int = 0
    """The smallest that it was seen to occupy in memory, anywhere: weights plus KV cache."""
    weights_bytes: int = 0
    """The smallest copy on a disk."""


UNKNOWN = Size()


class Fleet(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All nodes and all open requests, as of one position in the log."""

    seq: int = 0
    nodes: dict[str, Node] = {}
    requests: Map[str, OpenRequest] = Map()
    sizes: dict[str, Size] = {}
    """By canonical model name, over all nodes. Kept here because every decision asks, and few events change it."""


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """Return the key under which all spellings of one model meet.

    Lower case, without the default registry and namespace, always with a tag; `:local` is dropped. The grammar is
    Ollama's: `[scheme://][host/][namespace/]model[:tag]`.
    """
    key = name.strip().lower()
    if "://" in key:
        key = key.split("://", 1)[1]
    key = key.removeprefix("registry.ollama.ai/").removeprefix("library/").removesuffix(":local")
    return key if ":" in key.rsplit("/", 1)[-1] else f"{key}:latest"


def sizes(nodes: Collection[Node], models: Iterable[str]) -> dict[str, Size]:
    """Return what nodes report about the sizes of models (canonical names)."""
    return {
        model: Size(
            resident_bytes=_least(node.loaded.get(model) for node in nodes),
            weights_bytes=_least(node.models.get(model) for node in nodes),
        )
        for model in models
    }


def _least(copies: Iterable[Model | Resident | None]) -> int:
    return min((copy.size_bytes for copy in copies if copy is not None and copy.size_bytes > 0), default=0)


_EMPTY = Queue()


def apply(fleet: Fleet, recorded: Recorded) -> Fleet:
    """Fold one event. Nodes that were never introduced appear with what is known of them, and those that left go."""
    fold = _FOLDS.get(type(recorded.event))
    return _stepped(fleet, recorded) if fold is None else fold(fleet, recorded, recorded.event)


def _stepped(fleet: Fleet, recorded: Recorded) -> Fleet:
    return Fleet(seq=recorded.seq, nodes=fleet.nodes, requests=fleet.requests, sizes=fleet.sizes)


def _received(fleet: Fleet, recorded: Recorded, event: RequestReceived) -> Fleet:
    opened = OpenRequest(received_seq=recorded.seq, received_at=recorded.at, kind=event.kind)
    requests = fleet.requests.set(event.request, opened)
    return Fleet(seq=recorded.seq, nodes=fleet.nodes, requests=requests, sizes=fleet.sizes)


def _enqueued(fleet: Fleet, recorded: Recorded, event: RequestEnqueued) -> Fleet:
    return _place(fleet, recorded, event, "waiting")


def _dispatched(fleet: Fleet, recorded: Recorded, event: RequestDispatched) -> Fleet:
    return _place(fleet, recorded, event, "running")


def _place(
    fleet: Fleet,
    recorded: Recorded,
    event: RequestEnqueued | RequestDispatched,
    phase: Literal["waiting", "running"],
) -> Fleet:
    request = fleet.requests.get(event.request)
    if request is None:  # the log begins in the middle of this request: an import, or an archive cut
        return _stepped(fleet, recorded)
    placed = OpenRequest(
        received_seq=request.received_seq,
        received_at=request.received_at,
        kind=request.kind,
        phase=phase,
        node=event.node,
        model=event.model,
        attempt=event.attempt,
    )
    # In before out: a node that left must not be forgotten between the line and the slot of its last request.
    nodes = _leave(_count(fleet.nodes, event.node, placed, +1), request)
    requests = fleet.requests.set(event.request, placed)
    return Fleet(seq=recorded.seq, nodes=nodes, requests=requests, sizes=fleet.sizes)


def _attempt_failed(fleet: Fleet, recorded: Recorded, event: RequestAttemptFailed) -> Fleet:
    request = fleet.requests.get(event.request)
    if request is None:
        return _stepped(fleet, recorded)
    freed = replace(request, phase="received", node=None)
    nodes = _leave(fleet.nodes, request, failed=1)
    requests = fleet.requests.set(event.request, freed)
    return Fleet(seq=recorded.seq, nodes=nodes, requests=requests, sizes=fleet.sizes)


def _finished(fleet: Fleet, recorded: Recorded, event: RequestFinished) -> Fleet:
    request = fleet.requests.get(event.request)
    if request is None:
        return _stepped(fleet, recorded)
    outcome = event.outcome
    completed = int(outcome in ("completed", "no_output"))
    failed = int(outcome in ("failed", "incomplete"))  # what the client or the router broke off is not the node's fault
    nodes = _leave(fleet.nodes, request, completed=completed, failed=failed)
    requests = fleet.requests.delete(event.request)
    return Fleet(seq=recorded.seq, nodes=nodes, requests=requests, sizes=fleet.sizes)


def _leave(nodes: dict[str, Node], request: OpenRequest, *, completed: int = 0, failed: int = 0) -> dict[str, Node]:
    """Take a request out of the line where it stands, if it stands in one."""
    if request.node is None:
        return nodes
    return _count(nodes, request.node, request, -1, completed=completed, failed=failed)


def _count(
    nodes: dict[str, Node], name: str, request: OpenRequest, step: int, *, completed: int = 0, failed: int = 0
) -> dict[str, Node]:
    node = nodes.get(name) or Node(name=name)
    queue = node.queues.get(request.model) or _EMPTY
    running = request.phase == "running"
    changed = Queue(
        kind=request.kind,
        waiting=queue.waiting + (0 if running else step),
        in_flight=queue.in_flight + (step if running else 0),
        completed=queue.completed + completed,
        failed=queue.failed + failed,
    )
    assert changed.waiting >= 0
    assert changed.in_flight >= 0
    depth = node.depth + step
    if node.left and not depth:
        return _without(nodes, name)
    in_flight = node.in_flight + step if running else node.in_flight
    queues = {**node.queues, request.model: changed}
    return {**nodes, name: replace(node, queues=queues, in_flight=in_flight, depth=depth)}


def _without(nodes: dict[str, Node], name: str) -> dict[str, Node]:
    return {key: node for key, node in nodes.items() if key != name}


def _node(fleet: Fleet, name: str) -> Node:
    return fleet.nodes.get(name) or Node(name=name)


def _with(fleet: Fleet, recorded: Recorded, node: Node) -> Fleet:
    nodes = {**fleet.nodes, node.name: node}
    return Fleet(seq=recorded.seq, nodes=nodes, requests=fleet.requests, sizes=fleet.sizes)


def _with_models(fleet: Fleet, recorded: Recorded, node: Node, *changed: Iterable[str]) -> Fleet:
    """Put a node in its place of which some models came or went."""
    nodes = {**fleet.nodes, node.name: node}
    found = fleet.sizes | sizes(nodes.values(), {model for models in changed for model in models})
    known = {model: size for model, size in found.items() if size != UNKNOWN}
    return Fleet(seq=recorded.seq, nodes=nodes, requests=fleet.requests, sizes=known)


def _joined(fleet: Fleet, recorded: Recorded, event: NodeJoined) -> Fleet:
    was = _node(fleet, event.node)
    node = replace(
        was,
        url=event.url,
        engine=event.engine,
        hardware=event.hardware,
        agent_version=event.agent_version,
        parallel=event.parallel,
        loaded_max=event.loaded_max,
        joined_at=was.joined_at or recorded.at,
        left=False,
    )
    return _with(fleet, recorded, node)


def _reported(fleet: Fleet, recorded: Recorded, event: NodeReported) -> Fleet:
    node = _node(fleet, event.node)
    was = node.reading
    # Capacity is the one reading whose absence means something: the machine stopped learning. A keyframe says so.
    reading = Reading(
        at=recorded.at,
        cpu_pct=was.cpu_pct if event.cpu_pct is None else event.cpu_pct,
        memory=event.memory or was.memory,
        thermal=event.thermal or was.thermal,
        disk=event.disk or was.disk,
        capacity=event.capacity if event.keyframe else event.capacity or was.capacity,
        engine_up=was.engine_up if event.engine_up is None else event.engine_up,
        clock_skew_s=was.clock_skew_s if event.clock_skew_s is None else event.clock_skew_s,
        connection_failures=event.connection_failures or 0,
    )
    return _with(fleet, recorded, replace(node, reading=reading, left=False))


def _stocked(fleet: Fleet, recorded: Recorded, event: NodeInventoryChanged) -> Fleet:
    node = _node(fleet, event.node)
    models = {canonical(model.name): model for model in event.models}
    return _with_models(fleet, recorded, replace(node, models=models, left=False), node.models, models)


def _resided(fleet: Fleet, recorded: Recorded, event: NodeResidencyChanged) -> Fleet:
    node = _node(fleet, event.node)
    loaded = {canonical(model.name): model for model in event.loaded}
    gone = {name: recorded.at for name in node.loaded if name not in loaded}
    unloaded_at = {name: when for name, when in node.unloaded_at.items() if name not in loaded} | gone
    resided = replace(node, loaded=loaded, unloaded_at=unloaded_at, left=False)
    return _with_models(fleet, recorded, resided, node.loaded, loaded)


def _status_changed(fleet: Fleet, recorded: Recorded, event: NodeStatusChanged) -> Fleet:
    node = _node(fleet, event.node)
    drained_by = "" if event.status == "online" else node.drained_by
    left = node.left and event.status == "offline"
    return _with(fleet, recorded, replace(node, status=event.status, drained_by=drained_by, left=left))


def _drained(fleet: Fleet, recorded: Recorded, event: NodeDrainRequested) -> Fleet:
    node = replace(_node(fleet, event.node), status="draining", drained_by=event.by, left=False)
    return _with(fleet, recorded, node)


def _left(fleet: Fleet, recorded: Recorded, event: NodeLeft) -> Fleet:
    node = fleet.nodes.get(event.node)
    if node is None:
        return _stepped(fleet, recorded)
    left = replace(node, status="offline", models={}, loaded={}, left=True)
    emptied = _with_models(fleet, recorded, left, node.models, node.loaded)
    return emptied if node.depth else replace(emptied, nodes=_without(fleet.nodes, event.node))


#: What each event does. A table rather than a `match`: this runs on the event loop for every event, and the events that
#: change nothing here (half of them) would pay for all the patterns. It also names what a rebuild has to read.
_FOLDS: dict[type[Event], Callable[[Fleet, Recorded, Any], Fleet]] = {
    NodeJoined: _joined,
    NodeReported: _reported,
    NodeInventoryChanged: _stocked,
    NodeResidencyChanged: _resided,
    NodeStatusChanged: _status_changed,
    NodeDrainRequested: _drained,
    NodeLeft: _left,
    RequestReceived: _received,
    RequestEnqueued: _enqueued,
    RequestDispatched: _dispatched,
    RequestAttemptFailed: _attempt_failed,
    RequestFinished: _finished,
}

#: The events that change a fleet; all others only move its position.
FOLDED = frozenset(_FOLDS)

FLEET = Projection(name="fleet", version=3, state=Fleet, initial=Fleet, apply=apply)
