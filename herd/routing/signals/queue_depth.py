"""Every request on a machine shares its memory bandwidth, whichever model it uses."""

from herd.routing.context import Context
from herd.routing.policy import Ask
from projections.fleet import Node

RELATIVE_MIN = 0.25
RELATIVE_MAX = 4.0


def queue_depth(node: Node, ask: Ask, context: Context) -> float:  # noqa: ARG001  # every signal has this shape
    """Return minus `score_queue_depth_penalty_per` (6) for each request here, to minus `_max_penalty` (30).

    Counts what waits and runs on the machine for all models, from the request events. Where bandwidths are known the
    count is divided by the node's bandwidth over the fleet's median (0.25 to 4): a faster machine bears more.
    """
    depth = context.depths[node.name]
    if not depth:
        return 0.0
    bandwidth = node.hardware.memory_bandwidth_gbps
    if bandwidth > 0 and context.median_bandwidth_gbps > 0:
        relative = bandwidth / context.median_bandwidth_gbps
        depth /= relative if RELATIVE_MIN < relative < RELATIVE_MAX else _clamped(relative)
    penalty = depth * context.parameters.score_queue_depth_penalty_per
    most = context.parameters.score_queue_depth_max_penalty
    return 0.0 - min(penalty, most)


def _clamped(relative: float) -> float:
    return RELATIVE_MIN if relative <= RELATIVE_MIN else RELATIVE_MAX
