"""The policy that users of the earlier router know: seven signals, added up, with its published weights."""

from hashlib import sha256
from math import fsum
from operator import attrgetter
from typing import Any

import msgspec

from events.types import Candidate
from herd.errors import SettingsError
from herd.routing.chance import Chance
from herd.routing.context import ClassicParameters, Context
from herd.routing.decide import DECIDING_VERSION
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


def classic(parameters: dict[str, Any]) -> Classic:
    """Build the policy; absent parameters have their published values. Raises `SettingsError` for one it cannot use."""
    try:
        return Classic(msgspec.convert(parameters, ClassicParameters))
    except msgspec.ValidationError as error:
        names = ", ".join(ClassicParameters.__struct_fields__)
        raise SettingsError(f"policy classic: {error}", hint=f"It knows: {names}.") from error


def fingerprint(name: str, version: int, parameters: dict[str, Any], *, deciding: int = DECIDING_VERSION) -> str:
    """Return twelve hex digits that differ whenever the decisions of a policy may differ."""
    identity = {"name": name, "version": version, "deciding": deciding, "parameters": parameters}
    return sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()[:12]
