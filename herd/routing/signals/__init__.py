"""A score is a sum of independent opinions, and this table lists them: one file and one line for each.

The names are in every log and in the traces that users query, so they are permanent.
"""

from collections.abc import Callable, Sequence

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

Signal = Callable[[Sequence[Node], Ask, Context], list[float]]
"""Points for each candidate, in their order: pure, finite, and the same for the same arguments on every machine.

All candidates at once, because some answers depend on them all, and a call for each of them would cost more than the
arithmetic in it.
"""

SIGNALS: dict[str, Signal] = {
    "thermal": thermal,
    "memory_fit": memory_fit,
    "queue_depth": queue_depth,
    "wait_time": wait_time,
    "role_affinity": role_affinity,
    "availability_trend": availability_trend,
    "context_fit": context_fit,
}
