"""A machine that its owner needs is asked last; a server that nobody sits at is never asked later than a laptop."""

from collections.abc import Sequence

from herd.routing.context import Context
from herd.routing.policy import Ask
from projections.fleet import Node


def availability_trend(nodes: Sequence[Node], ask: Ask, context: Context) -> list[float]:  # noqa: ARG001  # every signal has this shape
    """Return `(availability - 1) * score_availability_trend_max` (10): 0 if all ours, or if it reports no capacity.

    Availability is what the node's agent learnt of its owner's habits, 0 to 1.
    """
    most = context.parameters.score_availability_trend_max
    return [
        0.0 if (capacity := node.reading.capacity) is None else (min(max(capacity.availability, 0.0), 1.0) - 1.0) * most
        for node in nodes
    ]
