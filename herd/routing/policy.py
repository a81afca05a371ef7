"""What a routing policy is asked, and what it answers: values in, values out, so that replay can ask again."""

from typing import Any, Protocol

import msgspec

from events.types import Candidate, Eliminated, Elimination, Kind, RequestReceived
from herd.routing.chance import Chance
from projections.fleet import Node
from projections.view import View

__all__ = ["Ask", "Candidate", "Chance", "Decision", "Eliminated", "Elimination", "Policy", "Ranking"]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a policy: which node should answer this?"""

    request: str
    attempt: int
    kind: Kind
    model: str
    """Canonical name."""
    tokens: int = 0
    """Prompt length, estimated."""
    needs: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    """Nodes where earlier attempts of this request failed."""

    @classmethod
    def of(cls, received: RequestReceived, *, attempt: int = 1, excluded: tuple[str, ...] = ()) -> "Ask":
        """Return the question that a received request raises: the same one live and in replay."""
        return cls(
            request=received.request,
            attempt=attempt,
            kind=received.kind,
            model=received.model,
            tokens=received.tokens_estimated,
            needs=received.needs,
            excluded=excluded,
        )


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """A policy's opinion of the nodes that may serve."""

    candidates: tuple[Candidate, ...]
    """Best first; equals in any order."""
    propensity: float = 1.0
    """Probability of the first candidate under this policy in this state."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer: who serves, who else could have, who could not and why."""

    node: str | None
    score: float
    candidates: tuple[Candidate, ...]
    eliminated: tuple[Eliminated, ...]
    runner_up: str | None
    margin: float | None
    propensity: float


class Policy(Protocol):
    """A way to rank nodes. Pure: the same arguments give the same ranking, bit for bit."""

    @property
    def name(self) -> str:
        """The name in POLICIES and in FLEET_POLICY."""
        ...

    @property
    def hash(self) -> str:
        """Twelve hex digits that differ whenever parameters (and so decisions) may differ."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything needed to build this policy again; plain JSON values."""
        ...

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals, in the order of `Candidate.points`."""
        ...

    def rank(self, view: View, ask: Ask, admitted: list[Node], chance: Chance, *, now: int) -> Ranking:
        """Order the admitted nodes, best first. `now` is in nanoseconds since the epoch."""
        ...
