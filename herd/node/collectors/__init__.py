"""Everything an agent measures about its machine; a new reading is a file beside this one and a line here."""

from herd.node.collectors import chip, cpu, disk, memory, thermal
from herd.node.collectors.collector import Around, Collector

__all__ = ["COLLECTORS", "Around", "Collector"]

COLLECTORS: tuple[Collector, ...] = (cpu.collect, memory.collect, disk.collect, thermal.collect, chip.collect)
