"""Each platform's text is read as that platform means it."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from herd.node.bandwidth import bandwidth_gbps
from herd.node.collectors import COLLECTORS, Around, Collector
from herd.node.collectors.chip import arch_of, parse_cpuinfo, parse_nvidia, parse_registry, printable
from herd.node.collectors.collector import said_by
from herd.node.collectors.disk import existing
from herd.node.collectors.memory import parse_macos, parse_meminfo, pressure_of
from herd.node.collectors.thermal import thermal_of
from herd.wire.heartbeat import Heartbeat, Thermal

MEMINFO = """MemTotal:       32768000 kB
MemFree:          512000 kB
MemAvailable:   {available} kB
Buffers:          204800 kB
Cached:         20480000 kB
HugePages_Total:       0
"""

CPUINFO_INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 183
model name\t: 13th Gen Intel(R) Core(TM) i9-13900K
flags\t\t: fpu vme de

processor\t: 1
model name\t: another core that is slower
"""

CPUINFO_PI = """processor\t: 0
BogoMIPS\t: 108.00
CPU implementer\t: 0x41

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""

REGISTRY = "\r\nHKEY_LOCAL_MACHINE\\HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0\r\n\
    ProcessorNameString    REG_SZ    AMD Ryzen 9 7950X 16-Core Processor            \r\n\r\n"

NVIDIA = "NVIDIA GeForce RTX 4090\nNVIDIA GeForce RTX 4090\nNVIDIA RTX A4000\n"


class Sensor(NamedTuple):
    current: float


@pytest.mark.parametrize("collect", COLLECTORS, ids=lambda collect: collect.__module__.rpartition(".")[2])
def test_every_collector_adds_to_a_heartbeat_of_this_machine(collect: Collector) -> None:
    empty = Heartbeat(node_id="ash")
    found = collect(empty, Around(platform=sys.platform, models_dir=Path("/nowhere/at/all")))
    assert found != empty
    assert found.node_id == "ash"


@pytest.mark.parametrize(
    ("available", "pressure"),
    [(30_000_000, "normal"), (4_915_201, "normal"), (4_915_200, "warn"), (1_638_400, "critical"), (0, "critical")],
)
def test_linux_is_short_of_memory_by_what_is_available(available: int, pressure: str) -> None:
    assert parse_meminfo(MEMINFO.format(available=available)) == pressure


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: many kB\nMemAvailable: few kB\n", "MemTotal:\n"])
def test_a_linux_that_does_not_say_is_judged_otherwise(text: str) -> None:
    assert parse_meminfo(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n0\n", ("normal", 0)),
        ("2\n1073741824\n", ("warn", 1 << 30)),
        ("4\n5\n", ("critical", 5)),
        ("1\n", ("normal", 0)),
        ("", ("normal", 0)),
    ],
)
def test_macos_is_asked_for_its_kernels_own_verdict(text: str, expected: tuple[str, int]) -> None:
    assert parse_macos(text) == expected


def test_pressure_elsewhere_is_the_share_in_use() -> None:
    assert [pressure_of(100, available) for available in (100, 16, 15, 6, 5, 0)] == [
        "normal", "normal", "warn", "warn", "critical", "critical",
    ]  # fmt: skip
    assert pressure_of(0, 0) == "normal"


def test_the_processors_own_sensor_is_believed_before_a_disks() -> None:
    sensors = {"nvme": [Sensor(91.0)], "k10temp": [Sensor(61.24), Sensor(70.0)], "coretemp": [Sensor(0.0)]}
    assert thermal_of(sensors) == Thermal(state="nominal", temperature_c=70.0, source="psutil:k10temp")


def test_any_other_sensor_is_better_than_none() -> None:
    assert thermal_of({"acpitz": [Sensor(85.0)]}) == Thermal(
        state="warning", temperature_c=85.0, source="psutil:acpitz"
    )


def test_impossible_temperatures_are_unknown() -> None:
    assert thermal_of({"coretemp": [Sensor(0.0), Sensor(-128.0), Sensor(65261.85)]}) == Thermal()
    assert thermal_of({}) == Thermal()


def test_the_first_core_names_the_processor() -> None:
    assert parse_cpuinfo(CPUINFO_INTEL) == "13th Gen Intel(R) Core(TM) i9-13900K"


def test_a_board_without_a_processor_name_has_a_model() -> None:
    assert parse_cpuinfo(CPUINFO_PI) == "Raspberry Pi 5 Model B Rev 1.0"
    assert parse_cpuinfo("") == ""


def test_padding_of_firmware_is_left_out() -> None:
    assert printable("Raspberry Pi 5\0\0") == "Raspberry Pi 5"


def test_windows_names_its_processor_in_the_registry() -> None:
    assert parse_registry(REGISTRY) == "AMD Ryzen 9 7950X 16-Core Processor"
    assert parse_registry("ERROR: not found") == ""


def test_the_same_card_twice_is_named_once() -> None:
    assert parse_nvidia(NVIDIA) == ["NVIDIA GeForce RTX 4090", "NVIDIA RTX A4000"]


@pytest.mark.parametrize(
    ("system", "machine", "arch"),
    [
        ("darwin", "arm64", "apple_silicon"),
        ("darwin", "x86_64", "x86_64"),
        ("linux", "aarch64", "arm64"),
        ("win32", "AMD64", "x86_64"),
        ("linux", "riscv64", "riscv64"),
        ("linux", "", "unknown"),
    ],
)
def test_architectures_have_the_peers_names(system: str, machine: str, arch: str) -> None:
    assert arch_of(system, machine) == arch


@pytest.mark.parametrize(
    ("chip", "speed"),
    [
        ("Apple M1", 68), ("apple  m2   Ultra", 800), ("Apple M3 Ultra", 819), ("Apple M4 Max", 546),
        ("Apple M9", 0), ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", 0), ("", 0),
        ("AMD Ryzen 9 + NVIDIA GeForce RTX 4090", 1008), ("NVIDIA H100 80GB HBM3", 3350),
        ("AMD Ryzen + NVIDIA GeForce RTX 2070 + NVIDIA GeForce RTX 3090", 936),
        ("Intel + NVIDIA GeForce RTX 4090 Laptop GPU", 0),
    ],
)  # fmt: skip
def test_bandwidth_follows_from_the_chip(chip: str, speed: float) -> None:
    assert bandwidth_gbps(chip) == speed


def test_the_volume_is_that_of_the_nearest_directory(tmp_path: Path) -> None:
    assert existing(tmp_path / "models" / "blobs") == tmp_path


def test_a_tool_that_fails_or_is_not_there_says_nothing() -> None:
    assert said_by("no-such-tool-anywhere") == ""
    assert said_by(sys.executable, "-c", "print('x'); raise SystemExit(1)") == ""
    assert said_by(sys.executable, "-c", "print('x')") == "x\n"
