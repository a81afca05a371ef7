"""Time is an argument everywhere else, so that a log or a simulation can be run again; this file reads the real one."""

import time
from typing import Protocol

#: A step of the wall clock larger than this is believed; smaller differences are drift that we do not follow.
REANCHOR_NS = 1_000_000_000


class Clock(Protocol):
    """Wall time in nanoseconds since the Unix epoch; never goes backwards."""

    def now(self) -> int:
        """Return the current time in nanoseconds since the epoch."""
        ...


class SystemClock:
    """The machine's wall clock, advanced by its monotonic clock.

    Durations between two readings are therefore not falsified by an NTP correction. Where the wall clock has jumped
    ahead by more than a second (sleep, a corrected clock), the jump is followed; backwards it is never followed.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        """Return the current time in nanoseconds since the epoch."""
        monotonic = time.monotonic_ns()
        wall = time.time_ns()
        if wall - monotonic > self._offset + REANCHOR_NS:
            self._offset = wall - monotonic
        return monotonic + self._offset


class ShiftedClock:
    """Another clock, set ahead by a fixed time.

    A log whose last event lies in the future (the wall clock was set back) goes on from there at the pace of the clock:
    were it to wait for the clock to catch up, everything until then would seem to take no time at all.
    """

    def __init__(self, clock: Clock, *, by_ns: int) -> None:
        self._clock = clock
        self._by_ns = by_ns

    def now(self) -> int:
        """Return the other clock's time plus the shift."""
        return self._clock.now() + self._by_ns


class ManualClock:
    """A clock that stands still until it is told otherwise: tests and simulations."""

    def __init__(self, now: int = 1_767_225_600_000_000_000) -> None:
        self._now = now

    def now(self) -> int:
        """Return the time that was last set."""
        return self._now

    def advance(self, *, s: float = 0.0, ns: int = 0) -> None:
        """Move forward by `s` seconds plus `ns` nanoseconds."""
        self._now += int(s * 1_000_000_000) + ns
