"""A machine that its owner needs is asked last; a server that nobody sits at is never asked later than a laptop."""

from herd.routing.context import Context
from herd.routing.policy import Ask
from projections.fleet import Node


def availability_trend(node: Node, ask: Ask, context: Context) -> float:  # noqa: ARG001  # every signal has this shape
    """Return `(availability - 1) * score_availability_trend_max` (10): 0 if all ours, or if it reports no capacity.

    Availability is what the node's agent learnt of its owner's habits, 0 to 1.
    """
    capacity = node.reading.capacity
    if capacity is None:
        return 0.0
    availability = min(max(capacity.availability, 0.0), 1.0)
    return (availability - 1.0) * context.parameters.score_availability_trend_max
