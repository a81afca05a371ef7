"""Every signal asks about one node, but some answers depend on all of them: those are worked out once per decision."""

from typing import Annotated, Literal

import msgspec

from herd.routing.footprint import size_gb
from herd.routing.policy import Ask
from projections.fleet import UNKNOWN, Fleet, Size
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


class Context(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the signals of one decision share."""

    now: int
    """Nanoseconds since the epoch."""
    parameters: ClassicParameters
    fleet: Fleet
    latency: Latency
    size: Size
    """Of the model that was asked for."""
    role: Role
    """The model's class by size; `mid` where that is unknown."""

    @classmethod
    def of(cls, view: View, ask: Ask, parameters: ClassicParameters, now: int) -> "Context":
        """Gather what the signals need for this question."""
        size = view.fleet.sizes.get(ask.model, UNKNOWN)
        return cls(
            now=now,
            parameters=parameters,
            fleet=view.fleet,
            latency=view.latency,
            size=size,
            role=_role(size_gb(size), parameters),
        )


def middle(values: list[float]) -> tuple[float, float]:
    """Return the middle two values, which are one and the same where their number is odd. Needs one at least."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]


def _role(size_gb: float | None, parameters: ClassicParameters) -> Role:
    if size_gb is None:
        return "mid"
    if size_gb > parameters.score_role_large_threshold_gb:
        return "large"
    return "small" if size_gb < parameters.score_role_small_threshold_gb else "mid"
