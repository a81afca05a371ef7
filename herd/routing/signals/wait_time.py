"""Five short requests are a shorter wait than one long one: what counts is how long this machine takes for each."""

from collections.abc import Sequence
from functools import lru_cache

from herd.routing.context import Context
from herd.routing.footprint import GB, size_gb
from herd.routing.policy import Ask
from projections.fleet import Node

#: Expected wait that costs one point.
MS_PER_POINT = 10_000
#: Length of the answer that stands for all others as long as nothing was measured.
TOKENS_TYPICAL = 100


def wait_time(nodes: Sequence[Node], ask: Ask, context: Context) -> list[float]:
    """Return minus a point for each 10 s of expected wait, to minus `score_wait_time_max_penalty` (25).

    The wait is the sum over the machine's queues of requests times their 75th percentile service time there (the
    latency view; before the first measurement an estimate from size and bandwidth), divided by the requests that one
    loaded model serves at once.
    """
    return [_penalty(node, ask, context) if node.depth else 0.0 for node in nodes]


def _penalty(node: Node, ask: Ask, context: Context) -> float:
    wait_ms = 0.0
    for model, queue in node.queues.items():
        depth = queue.waiting + queue.in_flight
        if depth:
            service_ms = context.latency.service_p75_ms(node.name, model)
            if service_ms is None:
                known_gb = size_gb(context.size) if model == ask.model else _own_gb(node, model)
                service_ms = _estimate_ms(node.hardware.memory_bandwidth_gbps, known_gb)
            wait_ms += depth * service_ms
    penalty = wait_ms / (node.slots * MS_PER_POINT)
    most = context.parameters.score_wait_time_max_penalty
    return 0.0 - min(penalty, most)


def _own_gb(node: Node, model: str) -> float | None:
    reported = node.models.get(model) or node.loaded.get(model)
    return reported.size_bytes / GB if reported is not None and reported.size_bytes > 0 else None


@lru_cache(maxsize=1024)
def _estimate_ms(bandwidth_gbps: float, known_gb: float | None) -> float:
    """Estimate an answer of typical length; an unknown size slows nothing down."""
    size = known_gb or 1.0
    if bandwidth_gbps > 0:
        tokens_s = max(10.0, bandwidth_gbps * 1.2 / max(1.0, size / 10))
    else:
        tokens_s = max(1.0, 100 / max(1.0, size))
    return TOKENS_TYPICAL / tokens_s * 1000
