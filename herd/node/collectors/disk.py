"""A pull that fills the disk leaves half a model, so the volume that counts is the one that holds the models."""

from pathlib import Path

import psutil
from msgspec.structs import replace

from herd.node.collectors.collector import Around, gib
from herd.wire.heartbeat import Disk, Heartbeat


def collect(heartbeat: Heartbeat, around: Around) -> Heartbeat:
    """Add the volume of the models' directory, or where that will be made."""
    usage = psutil.disk_usage(str(existing(around.models_dir)))
    disk = Disk(total_gb=gib(usage.total), used_gb=gib(usage.used), available_gb=gib(usage.free))
    return replace(heartbeat, disk=disk)


def existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    return next((each for each in (path, *path.parents) if each.exists()), Path(path.anchor or "."))
