"""A hot machine throttles, and its owner hears it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import psutil
from msgspec.structs import replace

from herd.node.collectors.collector import Around
from herd.wire.heartbeat import Heartbeat, Thermal

#: Drivers that read the processor itself, best first; the others may be a disk or a wireless card.
DRIVERS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
WARNING_C = 85.0

#: Sensors that are not there answer with zero, or with the largest number they know.
PLAUSIBLE_C = (1.0, 125.0)


class Sensor(Protocol):
    """One temperature, as psutil gives it."""

    @property
    def current(self) -> float:
        """Degrees Celsius."""
        ...


def collect(heartbeat: Heartbeat, around: Around) -> Heartbeat:
    """Add the hottest processor sensor. macOS shows none to ordinary users: unknown."""
    del around
    read: Any = getattr(psutil, "sensors_temperatures", None)  # absent on macOS and Windows
    return replace(heartbeat, thermal=thermal_of(read() if read is not None else {}))


def thermal_of(sensors: Mapping[str, Sequence[Sensor]]) -> Thermal:
    """Judge the first driver that has a plausible reading."""
    others = tuple(driver for driver in sensors if driver not in DRIVERS)
    low, high = PLAUSIBLE_C
    for driver in DRIVERS + others:
        readings = [sensor.current for sensor in sensors.get(driver, ()) if low <= sensor.current <= high]
        if readings:
            peak = max(readings)
            state = "warning" if peak >= WARNING_C else "nominal"
            return Thermal(state=state, temperature_c=round(peak, 1), source=f"psutil:{driver}")
    return Thermal()
