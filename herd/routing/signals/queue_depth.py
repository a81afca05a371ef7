"""Every request on a machine shares its memory bandwidth, whichever model it uses."""

from collections.abc import Sequence

from herd.routing.context import ClassicParameters, Context, middle
from herd.routing.policy import Ask
from projections.fleet import Fleet, Node

RELATIVE_MIN = 0.25
RELATIVE_MAX = 4.0


def queue_depth(nodes: Sequence[Node], ask: Ask, context: Context) -> list[float]:  # noqa: ARG001  # every signal has this shape
    """Return minus `score_queue_depth_penalty_per` (6) for each request here, to minus `_max_penalty` (30).

    Counts what waits and runs on the machine for all models, from the request events. Where bandwidths are known the
    count is divided by the node's bandwidth over the fleet's median (0.25 to 4): a faster machine bears more.
    """
    depths = [node.depth for node in nodes]
    if not any(depths):
        return [0.0] * len(nodes)
    parameters = context.parameters
    median_gbps = _median_bandwidth_gbps(context.fleet) if parameters.queue_penalty_bandwidth_normalize else 0.0
    return [
        _penalty(depth, node.hardware.memory_bandwidth_gbps, median_gbps, parameters) if depth else 0.0
        for node, depth in zip(nodes, depths, strict=True)
    ]


def _penalty(depth: float, bandwidth_gbps: float, median_gbps: float, parameters: ClassicParameters) -> float:
    if bandwidth_gbps > 0 and median_gbps > 0:
        relative = bandwidth_gbps / median_gbps
        depth /= relative if RELATIVE_MIN < relative < RELATIVE_MAX else _clamped(relative)
    penalty = depth * parameters.score_queue_depth_penalty_per
    most = parameters.score_queue_depth_max_penalty
    return 0.0 - min(penalty, most)


def _clamped(relative: float) -> float:
    return RELATIVE_MIN if relative <= RELATIVE_MIN else RELATIVE_MAX


def _median_bandwidth_gbps(fleet: Fleet) -> float:
    """Return the median over all nodes that are not offline and whose bandwidth is known; 0 where nobody's is."""
    known = [
        bandwidth
        for node in fleet.nodes.values()
        if (bandwidth := node.hardware.memory_bandwidth_gbps) > 0 and node.status != "offline"
    ]
    low, high = middle(known) if known else (0.0, 0.0)
    return (low + high) / 2
