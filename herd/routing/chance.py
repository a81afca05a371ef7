"""A recorded seed must mean the same choice for ever, on every Python: so the generator is ours, and eight lines."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Chance:
    """SplitMix64 (Steele, Lea, Flood 2014): a stream of numbers that depends on nothing but its seed."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def bits(self) -> int:
        """Return the next 64 random bits."""
        self._state = z = (self._state + 0x9E37_79B9_7F4A_7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
        return z ^ (z >> 31)

    def below(self, limit: int) -> int:
        """Return a whole number from 0 to `limit` - 1, each equally likely (bias below 2^-57 for limits under 128)."""
        return self.bits() % limit

    def uniform(self) -> float:
        """Return a number in [0, 1) with 53 random bits."""
        return (self.bits() >> 11) * 2.0**-53
