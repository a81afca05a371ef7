"""Writes the golden log of decisions anew: `python -m tests.golden.make_decisions`, then read the diff.

Do so when a formula or a fold was changed on purpose; the change is a sentence in the changelog.
"""

from pathlib import Path

from events.jsonl import dump
from tests.sim.scenarios import GOLDEN

PATH = Path(__file__).with_name("decisions.jsonl")
SEED = 6


def main() -> None:
    PATH.write_bytes(b"".join(dump(recorded) + b"\n" for recorded in GOLDEN.world(SEED).run()))


if __name__ == "__main__":
    main()
