"""Large models belong on fast machines, and small ones elsewhere, so that the fast ones stay free for the large."""

from collections.abc import Sequence

from herd.routing.context import Context, Role, middle
from herd.routing.policy import Ask
from projections.fleet import Node

#: From here on more bandwidth makes no difference.
BANDWIDTH_AMPLE_GBPS = 800.0
POINTS_AMPLE = 25.0
#: Points of a mid-size model on every machine, when only memory is known.
TIER_MID = 5.0


def role_affinity(nodes: Sequence[Node], ask: Ask, context: Context) -> list[float]:  # noqa: ARG001  # every signal has this shape
    """Return 0 to 25 points by model size and memory bandwidth; `b = min(25, 5 + bandwidth / 40)`.

    Large models (above `score_role_large_threshold_gb`): b; small ones (below `_small_`): 18 - 0.6 b; others,
    and those of unknown size: 0.6 b. A node of unknown bandwidth gets the median of the candidates whose bandwidth is
    known, so that all stand on one scale. Where nobody's is known, or with `bandwidth_aware_scoring` off, total memory
    in GiB decides: large 15 from 128, 5 from 32, else 0; small 15 to 32, 8 to 128, else 3; others 5.
    """
    role = context.role
    bandwidths_gbps = [node.hardware.memory_bandwidth_gbps for node in nodes]
    points = {bandwidth: _by_bandwidth(bandwidth, role) for bandwidth in set(bandwidths_gbps) if bandwidth > 0}
    if not points or not context.parameters.bandwidth_aware_scoring:
        return [_by_memory(node.hardware.memory_total_gib, role) for node in nodes]
    # Points rise or fall with bandwidth throughout, so the middle bandwidths have the middle points.
    low, high = middle([bandwidth for bandwidth in bandwidths_gbps if bandwidth > 0])
    unknown = (points[low] + points[high]) / 2
    return [points.get(bandwidth, unknown) for bandwidth in bandwidths_gbps]


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
