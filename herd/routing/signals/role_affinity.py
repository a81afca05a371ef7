"""Large models belong on fast machines, and small ones elsewhere, so that the fast ones stay free for the large."""

from herd.routing.context import Context, Role
from herd.routing.policy import Ask
from projections.fleet import Node

#: From here on more bandwidth makes no difference.
BANDWIDTH_AMPLE_GBPS = 800.0
POINTS_AMPLE = 25.0
#: Points of a mid-size model on every machine, when only memory is known.
TIER_MID = 5.0


def role_affinity(node: Node, ask: Ask, context: Context) -> float:  # noqa: ARG001  # every signal has this shape
    """Return 0 to 25 points by model size and memory bandwidth; `b = min(25, 5 + bandwidth / 40)`.

    Large models (above `score_role_large_threshold_gb`): b; small ones (below `_small_`): 18 - 0.6 b; others,
    and those of unknown size: 0.6 b. A node of unknown bandwidth gets the median of the candidates whose bandwidth is
    known, so that all stand on one scale. Where nobody's is known, or with `bandwidth_aware_scoring` off, total memory
    in GiB decides: large 15 from 128, 5 from 32, else 0; small 15 to 32, 8 to 128, else 3; others 5.
    """
    middle = context.middle_bandwidths_gbps
    if not middle or not context.parameters.bandwidth_aware_scoring:
        return _by_memory(node.hardware.memory_total_gib, context.role)
    bandwidth = node.hardware.memory_bandwidth_gbps
    if bandwidth > 0:
        return _by_bandwidth(bandwidth, context.role)
    # Points rise or fall with bandwidth throughout, so the middle bandwidths have the middle points.
    return (_by_bandwidth(middle[0], context.role) + _by_bandwidth(middle[-1], context.role)) / 2


def _by_bandwidth(bandwidth_gbps: float, role: Role) -> float:
    points = 5.0 + bandwidth_gbps / 40 if bandwidth_gbps < BANDWIDTH_AMPLE_GBPS else POINTS_AMPLE
    if role == "large":
        return points
    return 18.0 - 0.6 * points if role == "small" else 0.6 * points


def _by_memory(total_gib: float, role: Role) -> float:
    if role == "large":
        return 15.0 if total_gib >= 128 else 5.0 if total_gib >= 32 else 0.0
    if role == "small":
        return 15.0 if total_gib <= 32 else 8.0 if total_gib <= 128 else 3.0
    return TIER_MID
