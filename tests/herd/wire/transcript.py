"""What real servers answered, and every way to cut it into chunks."""

from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st

_DIRECTORY = Path(__file__).parent / "transcripts"


def transcript(name: str) -> bytes:
    """Return a stored answer, byte for byte."""
    return (_DIRECTORY / name).read_bytes()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut at these places; empty chunks occur, as they do in life."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


places = st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=12)
