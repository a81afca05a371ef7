"""A view is a fold of the log: state in, event in, state out, with no clock, no chance and no I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from events.recorded import Recorded

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Projection(Generic[S]):
    """A named, versioned fold.

    `apply` is total (an event it does not care about returns the state with its position moved) and deterministic.
    Raise `version` whenever the meaning of a state changes: snapshots of other versions are then ignored.
    """

    name: str
    version: int
    state: type[S]
    initial: Callable[[], S]
    apply: Callable[[S, Recorded], S]
