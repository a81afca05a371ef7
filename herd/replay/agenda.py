"""In a simulation time passes only from one planned thing to the next: a day takes as long as its events."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from events.clock import ManualClock

Action = Callable[[], None]


class Agenda:
    """What is going to happen, earliest first; at the same instant, in the order in which it was planned."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._numbers = count()
        self._planned: list[tuple[int, int, Action]] = []

    def after(self, s: float, action: Action) -> None:
        """Plan an action for `s` seconds from now."""
        assert s >= 0
        heappush(self._planned, (self._clock.now() + round(s * 1e9), next(self._numbers), action))

    def step(self) -> bool:
        """Let time pass to the next action and do it; False when nothing is planned."""
        if not self._planned:
            return False
        at, _, action = heappop(self._planned)
        self._clock.advance(ns=at - self._clock.now())
        action()
        return True
