"""A machine is measured in parts that differ by platform and may be missing; a heartbeat carries what could be had."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from herd.wire.heartbeat import Heartbeat

#: A tool that takes longer hangs, and a heartbeat is worth more than what it would have said.
COMMAND_TIMEOUT_S = 5.0

GIB = 1 << 30


class Around(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent measures."""

    platform: str
    """`sys.platform`: linux, darwin, win32."""
    models_dir: Path
    """Where the engine keeps its models; it need not exist yet."""


Collector = Callable[[Heartbeat, Around], Heartbeat]
"""Returns the heartbeat with its own readings added, or as it was where the machine does not give them. May block."""


def said_by(*command: str) -> str:
    """Return what a command prints, empty where it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gib(count_bytes: float) -> float:
    """Return bytes as GiB, to two decimals."""
    return round(count_bytes / GIB, 2)


def first(lines: Sequence[str]) -> str:
    """Return the first line that says something, without the space around it."""
    return next((line.strip() for line in lines if line.strip()), "")
