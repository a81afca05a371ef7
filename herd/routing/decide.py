"""Live routing, shadow policies and replay ask this one function: a second one would answer otherwise one day."""

from hashlib import sha256
from operator import attrgetter
from typing import Any

import msgspec

from events.types import Candidate
from herd.routing.admission import admit
from herd.routing.chance import Chance
from herd.routing.policy import Ask, Decision, Policy
from projections.view import View

#: Raise this whenever admission, the fleet that it looks at, the handling of ties or the naming of models changes: a
#: policy's hash contains it, so decisions recorded before then count as made by another policy.
DECIDING_VERSION = 2

#: Totals closer than this are equal: the difference is rounding.
EQUAL = 1e-9

_by_name = attrgetter("node")


def decide(view: View, ask: Ask, policy: Policy, chance: Chance, *, now: int) -> Decision:
    """Choose the node that shall answer, with all that led to the choice. Pure; `now` in nanoseconds since the epoch.

    Stages: admission, the policy's ranking, and a draw among the nodes that are equally good.
    """
    admitted, eliminated = admit(view.fleet, ask, now=now)
    if not admitted:
        return Decision(
            node=None,
            score=0.0,
            candidates=(),
            eliminated=tuple(eliminated),
            runner_up=None,
            margin=None,
            propensity=1.0,
        )
    ranking = policy.rank(view, ask, admitted, chance, now=now)
    candidates = ranking.candidates
    equals = _equals(candidates)
    if equals > 1:
        candidates = _shuffled(candidates[:equals], chance) + candidates[equals:]
    best = candidates[0]
    second = candidates[1] if len(candidates) > 1 else None
    return Decision(
        node=best.node,
        score=best.total,
        candidates=candidates,
        eliminated=tuple(eliminated),
        runner_up=second.node if second is not None else None,
        margin=best.total - second.total if second is not None else None,
        propensity=ranking.propensity / equals,
    )


def fingerprint(name: str, version: int, parameters: dict[str, Any], *, deciding: int = DECIDING_VERSION) -> str:
    """Return twelve hex digits that differ whenever the decisions of a policy may differ."""
    identity = {"name": name, "version": version, "deciding": deciding, "parameters": parameters}
    return sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()[:12]


def _equals(candidates: tuple[Candidate, ...]) -> int:
    """Return how many candidates share the first place."""
    best = candidates[0].total
    for place, candidate in enumerate(candidates):
        if abs(candidate.total - best) > EQUAL:
            return place
    return len(candidates)


def _shuffled(equals: tuple[Candidate, ...], chance: Chance) -> tuple[Candidate, ...]:
    """Return the candidates in a drawn order that does not depend on the order they came in."""
    drawn = sorted(equals, key=_by_name)
    for last in range(len(drawn) - 1, 0, -1):
        other = chance.below(last + 1)
        drawn[last], drawn[other] = drawn[other], drawn[last]
    return tuple(drawn)
