"""Fleets as values, for tests that ask a policy without a log behind it."""

from typing import Any

import msgspec

from events.types import Capacity, Hardware, Kind, Memory, Model, NodeStatus, Resident
from herd.routing.chance import Chance
from herd.routing.decide import decide
from herd.routing.policy import Ask, Candidate, Decision, Policy
from projections.fleet import Fleet, Node, Queue, Reading, canonical, sizes
from projections.latency import Latency
from projections.view import View

NOW = 1_767_225_600_000_000_000
GB = 10**9
GIB = 1024**3
S = 1_000_000_000


class KnownLatency(Latency, frozen=True, kw_only=True):
    """A latency view that was told what it knows."""

    p75_ms: dict[tuple[str, str], float]

    def service_p75_ms(self, node: str, model: str) -> float | None:
        """Return what was told."""
        return self.p75_ms.get((node, model))


def on_disk(name: str, gb: float = 5, **more: Any) -> Model:
    return Model(name=name, size_bytes=int(gb * GB), **more)


def in_memory(name: str, gb: float = 5, *, context: int = 8192, **more: Any) -> Resident:
    return Resident(name=name, size_bytes=int(gb * GB), context_length=context, **more)


def node(
    name: str,
    *,
    disk: tuple[Model, ...] = (),
    loaded: tuple[Resident, ...] = (),
    bandwidth: float = 0.0,
    total: float = 64.0,
    available: float | None = 54.0,
    pressure: str = "normal",
    status: NodeStatus = "online",
    capacity: Capacity | None = None,
    queues: dict[str, Queue] | None = None,
    parallel: int = 0,
    unloaded_at: dict[str, int] | None = None,
    engine_up: bool = True,
) -> Node:
    memory = None if available is None else msgspec.convert({"available_gib": available, "pressure": pressure}, Memory)
    return working(
        name=name,
        hardware=Hardware(memory_total_gib=total, memory_bandwidth_gbps=bandwidth),
        status=status,
        parallel=parallel,
        reading=Reading(at=NOW - S, memory=memory, capacity=capacity, engine_up=engine_up),
        models={canonical(model.name): model for model in disk},
        loaded={canonical(model.name): model for model in loaded},
        unloaded_at=unloaded_at or {},
        queues=queues or {},
    )


def working(*, queues: dict[str, Queue], **more: Any) -> Node:
    """Return a node whose sums are those of its queues, as the fold keeps them."""
    in_flight = sum(queue.in_flight for queue in queues.values())
    return Node(queues=queues, in_flight=in_flight, depth=sum(queue.depth for queue in queues.values()), **more)


def view(*nodes: Node, p75_ms: dict[tuple[str, str], float] | None = None) -> View:
    models = {model for node in nodes for model in (*node.models, *node.loaded)}
    fleet = Fleet(seq=1, nodes={node.name: node for node in nodes}, sizes=sizes(nodes, models))
    return View(fleet=fleet, latency=KnownLatency(seq=1, p75_ms=p75_ms or {}))


def ask(
    model: str,
    *,
    kind: Kind = "chat",
    tokens: int = 20,
    needs: tuple[str, ...] = (),
    attempt: int = 1,
    excluded: tuple[str, ...] = (),
) -> Ask:
    return Ask(
        request="r1", attempt=attempt, kind=kind, model=canonical(model), tokens=tokens, needs=needs, excluded=excluded
    )


def decided(fleet: View, question: Ask, policy: Policy, *, seed: int = 1) -> Decision:
    return decide(fleet, question, policy, Chance(seed), now=NOW)


def points(decision: Decision, policy: Policy, name: str) -> dict[str, float]:
    """Return the points of one candidate by signal."""
    candidate = candidate_of(decision, name)
    return dict(zip(policy.signals, candidate.points, strict=True))


def candidate_of(decision: Decision, name: str) -> Candidate:
    return next(candidate for candidate in decision.candidates if candidate.node == name)
