"""How fast a machine writes tokens follows from its chip, which never changes while it runs."""

import platform
from functools import cache
from pathlib import Path

from msgspec.structs import replace

from herd.node.bandwidth import bandwidth_gbps
from herd.node.collectors.collector import Around, first, said_by
from herd.wire.heartbeat import Heartbeat

#: Names that /proc/cpuinfo gives the processor, best first; ARM boards have only the later ones.
CPUINFO_KEYS = ("model name", "Model", "Hardware", "cpu model")
WINDOWS_KEY = r"HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor\0"


def collect(heartbeat: Heartbeat, around: Around) -> Heartbeat:
    """Add architecture, chip, and the memory bandwidth that such a chip has."""
    chip = chip_of(around.platform)
    return replace(
        heartbeat,
        arch=arch_of(around.platform, platform.machine()),
        chip=chip,
        memory_bandwidth_gbps=bandwidth_gbps(chip),
    )


def arch_of(system: str, machine: str) -> str:
    """Return the architecture in the peer's words: apple_silicon, x86_64, arm64, else the machine's own."""
    if system == "darwin" and machine == "arm64":
        return "apple_silicon"
    known = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
    return known.get(machine.lower(), machine or "unknown")


@cache
def chip_of(system: str) -> str:
    """Return the name of the processor, and of the graphics cards where NVIDIA's tool is there. Asked once."""
    gpus = parse_nvidia(said_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"))
    return printable(" + ".join(name for name in (_processor(system), *gpus) if name))


def printable(name: str) -> str:
    """Return a name as a heartbeat may bear it; firmware pads some with zero bytes."""
    return "".join(char for char in name if char.isprintable())[:512]


def _processor(system: str) -> str:
    if system == "darwin":
        return first(said_by("sysctl", "-n", "machdep.cpu.brand_string").splitlines())
    if system == "win32":
        # Not wmic: current Windows has it no more.
        return parse_registry(said_by("reg", "query", WINDOWS_KEY, "/v", "ProcessorNameString"))
    try:
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def parse_cpuinfo(text: str) -> str:
    """Return the processor's name from Linux's /proc/cpuinfo, empty where it has none."""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    found = {key.strip(): value.strip() for key, value in reversed(pairs)}  # reversed: the first core wins
    return next((found[key] for key in CPUINFO_KEYS if found.get(key)), "")


def parse_registry(text: str) -> str:
    """Return the processor's name from the answer of `reg query`."""
    for line in text.splitlines():
        name, kind, value = [*line.split(None, 2), "", "", ""][:3]
        if name == "ProcessorNameString" and kind == "REG_SZ":
            return value.strip()
    return ""


def parse_nvidia(text: str) -> list[str]:
    """Return the distinct names of the cards, in order."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
