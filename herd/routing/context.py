"""Every signal asks about one node, but some answers depend on all of them: those are worked out once per decision."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from herd.routing.footprint import Footprint, footprint
from herd.routing.policy import Ask
from projections.fleet import Node
from projections.latency import Latency
from projections.view import View

Role = Literal["large", "mid", "small"]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class ClassicParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of the policy `classic`, named as the settings are. Penalties are given without their sign."""

    score_model_hot: Weight = 50.0
    score_model_warm: Weight = 30.0
    score_model_cold: Weight = 10.0
    score_memory_fit_max: Weight = 20.0
    score_queue_depth_max_penalty: Weight = 30.0
    score_queue_depth_penalty_per: Weight = 6.0
    score_wait_time_max_penalty: Weight = 25.0
    score_role_large_threshold_gb: Weight = 20.0
    score_role_small_threshold_gb: Weight = 8.0
    score_availability_trend_max: Weight = 10.0
    score_context_fit_max: Weight = 15.0
    bandwidth_aware_scoring: bool = True
    queue_penalty_bandwidth_normalize: bool = True


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What the signals of one decision share."""

    now: int
    """Nanoseconds since the epoch."""
    parameters: ClassicParameters
    latency: Latency
    footprint: Footprint
    size_gb: float | None
    """Size of the model that was asked for, GB; None = unknown."""
    role: Role
    """The model's class by size; `mid` where that is unknown."""
    depths: dict[str, int]
    """Requests waiting or running on each candidate, whatever their model."""
    median_bandwidth_gbps: float
    """Over all nodes that are not offline and whose bandwidth is known; 0 where nobody's is, or nobody is busy."""
    middle_bandwidths_gbps: tuple[float, ...]
    """The middle one or two bandwidths among candidates where it is known; empty where nobody's is."""

    @classmethod
    def of(cls, view: View, ask: Ask, candidates: Sequence[Node], parameters: ClassicParameters, now: int) -> "Context":
        """Gather what the signals need for this question."""
        depths: dict[str, int] = {}
        for node in candidates:
            depth = 0  # as Node.depth, without a generator for each of 32 nodes
            for queue in node.queues.values():
                depth += queue.waiting + queue.in_flight
            depths[node.name] = depth
        busy = parameters.queue_penalty_bandwidth_normalize and any(depths.values())
        size = footprint(view.fleet.nodes.values(), ask.model)
        return cls(
            now=now,
            parameters=parameters,
            latency=view.latency,
            footprint=size,
            size_gb=size.size_gb,
            role=_role(size.size_gb, parameters),
            depths=depths,
            median_bandwidth_gbps=_median_bandwidth(view) if busy else 0.0,
            middle_bandwidths_gbps=_middle([node.hardware.memory_bandwidth_gbps for node in candidates]),
        )


def _role(size_gb: float | None, parameters: ClassicParameters) -> Role:
    if size_gb is None:
        return "mid"
    if size_gb > parameters.score_role_large_threshold_gb:
        return "large"
    return "small" if size_gb < parameters.score_role_small_threshold_gb else "mid"


def _median_bandwidth(view: View) -> float:
    present = [n.hardware.memory_bandwidth_gbps for n in view.fleet.nodes.values() if n.status != "offline"]
    middle = _middle(present)
    return middle[0] if len(middle) == 1 else (middle[0] + middle[1]) / 2 if middle else 0.0


def _middle(values: list[float]) -> tuple[float, ...]:
    """Return the middle value of those above zero, or the middle two when their number is even."""
    known = sorted([value for value in values if value > 0])
    if not known:
        return ()
    half = len(known) // 2
    return (known[half],) if len(known) % 2 else (known[half - 1], known[half])
