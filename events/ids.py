"""Event and request ids sort by time of birth, because random keys cost an index five times as much as ordered ones."""

import os
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ids:
    """Makes UUIDv7 values (RFC 9562) as 32 lower-case hex digits, unique within and across processes.

    The 74 bits after the millisecond are one random start per process, counted up: two processes collide only if they
    drew the same start.
    """

    def __init__(self) -> None:
        self._numbers: Iterator[int] = count(int.from_bytes(os.urandom(7), "big"))

    def new(self, now: int) -> str:
        """Return a fresh id for something born at `now` (nanoseconds since the epoch)."""
        number = next(self._numbers)
        high = (number >> 52) & 0xFFF
        low = 0x8000_0000_0000_0000 | ((number & 0xF_FFFF_FFFF_FFFF) << 8)
        return f"{(now // 1_000_000) & 0xFFFF_FFFF_FFFF:012x}7{high:03x}{low:016x}"
