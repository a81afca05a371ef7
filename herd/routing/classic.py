"""The policy that users of the earlier router know: seven signals, added up, with its published weights."""

from math import fsum
from operator import attrgetter
from typing import Any

import msgspec

from events.types import Candidate
from herd.routing.chance import Chance
from herd.routing.context import ClassicParameters, Context
from herd.routing.decide import fingerprint
from herd.routing.policy import Ask, Ranking
from herd.routing.signals import SIGNALS
from projections.fleet import Node
from projections.view import View

#: Raise this whenever a formula changes: decisions of older versions then count as made by another policy.
VERSION = 1

_total = attrgetter("total")


class Classic:
    """The best sum of points wins."""

    name = "classic"
    signals = tuple(SIGNALS)

    def __init__(self, parameters: ClassicParameters) -> None:
        self._weights = parameters
        self._signals = tuple(SIGNALS.values())
        self.parameters: dict[str, Any] = msgspec.to_builtins(parameters)
        self.hash = fingerprint(self.name, VERSION, self.parameters)

    def rank(self, view: View, ask: Ask, admitted: list[Node], chance: Chance, *, now: int) -> Ranking:  # noqa: ARG002  # nothing here is random
        """Order the admitted nodes by their points, best first. `now` is in nanoseconds since the epoch."""
        context = Context.of(view, ask, self._weights, now)
        columns = [signal(admitted, ask, context) for signal in self._signals]
        # fsum rounds once, so a total depends neither on the order of signals nor on the Python version (sum() does).
        candidates = [
            Candidate(
                node=node.name,
                total=fsum(points),
                points=points,
                reading_age_ms=(now - at) // 1_000_000 if (at := node.reading.at) else -1,
            )
            for node, points in zip(admitted, zip(*columns, strict=True), strict=True)
        ]
        candidates.sort(key=_total, reverse=True)
        return Ranking(candidates=tuple(candidates))
