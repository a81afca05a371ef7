"""A model that does not fit in memory makes its whole machine crawl, so memory decides more placements than speed."""

from pathlib import Path
from typing import Any

import psutil
from msgspec.structs import replace

from events.types import Pressure
from herd.node.collectors.collector import Around, gib, said_by
from herd.wire.heartbeat import Heartbeat, Memory

#: Shares of memory in use from which a kernel without a verdict of its own is taken to be short of it.
WARN_SHARE = 0.85
CRITICAL_SHARE = 0.95

#: `kern.memorystatus_vm_pressure_level`; the text of `memory_pressure -Q` never names the level.
MACOS_LEVELS: dict[int, Pressure] = {1: "normal", 2: "warn", 4: "critical"}


def collect(heartbeat: Heartbeat, around: Around) -> Heartbeat:
    """Add memory, swap and the pressure as the platform's kernel judges it."""
    memory: Any = psutil.virtual_memory()
    swap = psutil.swap_memory()
    pressure, compressed_bytes = pressure_of(memory.total, memory.available), 0
    if around.platform == "darwin":
        text = said_by("sysctl", "-n", "kern.memorystatus_vm_pressure_level", "vm.compressor_bytes_used")
        pressure, compressed_bytes = parse_macos(text)
    elif around.platform == "linux":
        pressure = parse_meminfo(_meminfo()) or pressure
    reading = Memory(
        total_gb=gib(memory.total),
        used_gb=gib(memory.used),
        available_gb=gib(memory.available),
        pressure=pressure,
        wired_gb=gib(memory.wired) if around.platform == "darwin" else 0.0,
        compressed_gb=gib(compressed_bytes),
        swap_used_gb=gib(swap.used),
        swap_total_gb=gib(swap.total),
    )
    return replace(heartbeat, memory=reading)


def pressure_of(total: float, available: float) -> Pressure:
    """Judge by the share in use; the two need only have the same unit."""
    share = (total - available) / total if total > 0 else 0.0
    if share >= CRITICAL_SHARE:
        return "critical"
    return "warn" if share >= WARN_SHARE else "normal"


def parse_meminfo(text: str) -> Pressure | None:
    """Judge Linux's /proc/meminfo; None where it lacks what is needed (kernels before 3.14, some containers)."""
    found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        total, available = (int(found[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return None
    return pressure_of(total, available)


def parse_macos(text: str) -> tuple[Pressure, int]:
    """Return the pressure and the bytes held compressed, from the two lines of sysctl."""
    numbers = [int(line) for line in text.split() if line.isdigit()]
    level = numbers[0] if numbers else 1
    return MACOS_LEVELS.get(level, "normal"), numbers[1] if len(numbers) > 1 else 0


def _meminfo() -> str:
    try:
        return Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
