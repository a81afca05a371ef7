"""Event and request ids sort by time of birth, because random keys cost an index five times as much as ordered ones."""

import os
from itertools import count


class Ids:
    """Makes UUIDv7 values (RFC 9562) as 32 lower-case hex digits, unique within and across processes.

    Behind the millisecond stand 12 random bits of this process and a number that counts up from 56 random bits: two
    processes collide only if they drew the same start, or nearly.
    """

    def __init__(self) -> None:
        self._mine = int.from_bytes(os.urandom(2), "big") & 0xFFF
        # The bit above them makes all numbers equally long, so that hex() needs no padding.
        self._numbers = count(1 << 60 | int.from_bytes(os.urandom(7), "big"))
        self._ms = -1
        self._prefix = ""

    def new(self, now: int) -> str:
        """Return a fresh id for something born at `now` (nanoseconds since the epoch)."""
        ms = now // 1_000_000
        if ms != self._ms:  # most ids share their millisecond with the one before
            self._ms = ms
            self._prefix = f"{ms & 0xFFFF_FFFF_FFFF:012x}7{self._mine:03x}8"
        return self._prefix + hex(next(self._numbers))[3:]
