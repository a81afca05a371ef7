"""A machine whose owner is at work on it answers slowly, and its processor shows it first."""

import psutil
from msgspec.structs import replace

from herd.node.collectors.collector import Around
from herd.wire.heartbeat import Cpu, Heartbeat


def collect(heartbeat: Heartbeat, around: Around) -> Heartbeat:
    """Add the load since the last call (the first says 0) and the number of physical cores."""
    del around
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return replace(heartbeat, cpu=Cpu(cores_physical=cores, utilization_pct=psutil.cpu_percent(interval=None)))
