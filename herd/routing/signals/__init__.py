"""A score is a sum of independent opinions, and this table lists them: one file and one line for each.

The names are in every log and in the traces that users query, so they are permanent.
"""

from collections.abc import Callable

from herd.routing.context import Context
from herd.routing.policy import Ask
from herd.routing.signals.availability_trend import availability_trend
from herd.routing.signals.context_fit import context_fit
from herd.routing.signals.memory_fit import memory_fit
from herd.routing.signals.queue_depth import queue_depth
from herd.routing.signals.role_affinity import role_affinity
from herd.routing.signals.thermal import thermal
from herd.routing.signals.wait_time import wait_time
from projections.fleet import Node

Signal = Callable[[Node, Ask, Context], float]
"""Points for one candidate: pure, finite, and the same for the same arguments on every machine."""

SIGNALS: dict[str, Signal] = {
    "thermal": thermal,
    "memory_fit": memory_fit,
    "queue_depth": queue_depth,
    "wait_time": wait_time,
    "role_affinity": role_affinity,
    "availability_trend": availability_trend,
    "context_fit": context_fit,
}
