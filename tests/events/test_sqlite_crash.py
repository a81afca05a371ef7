"""Killed at any instant, a log holds all that was acknowledged, nothing twice, nothing by half, and no hole."""

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from events.clock import ManualClock
from events.recorded import Recorded
from events.sqlite import SQLiteStore, database, driver, open_readonly
from events.types import RequestEnqueued
from tests.events.databases import new_log
from tests.events.test_store_contract import dispatched, reported

ROOT = Path(__file__).parents[2]


def audit(path: Path) -> list[Recorded]:
    """Return what the log holds, having made sure that it is sound: whole groups at gapless positions."""
    with closing(database.connect_writer(path, "full")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (head,) = connection.execute("SELECT position FROM log_head").fetchone()
    with closing(open_readonly(path)) as reader:
        found = list(reader.read())
    assert [recorded.seq for recorded in found] == list(range(1, head + 1))
    groups = Counter(
        (recorded.event.request, recorded.event.ahead)
        for recorded in found
        if isinstance(recorded.event, RequestEnqueued)
    )
    assert all(count == size for (_, size), count in groups.items())
    return found


def kill_at_random(path: Path, seed: int) -> None:
    """Let a process append, kill it after a random while, and check what it left."""
    command = [sys.executable, "-m", "tests.events.crash_writer", str(path), str(seed)]
    chance = random.Random(seed)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        acknowledged = int(victim.stdout.readline())
        time.sleep(chance.random() * 0.25)
        victim.kill()
        acknowledged = max([acknowledged, *(int(line) for line in victim.stdout if line.endswith("\n"))])
    found = audit(path)
    assert len(found) >= acknowledged
    assert len({recorded.id for recorded in found}) == len(found)


def test_nothing_acknowledged_is_lost_to_a_kill(tmp_path: Path) -> None:
    path = new_log(tmp_path / "log.db")
    for seed in range(5):
        kill_at_random(path, seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_to_sixty_kills(tmp_path: Path) -> None:
    for round_ in range(6):
        path = new_log(tmp_path / f"log{round_}.db")
        for seed in range(10):
            kill_at_random(path, 100 * round_ + seed)


@pytest.fixture
def torn(tmp_path: Path) -> tuple[Path, list[Recorded], set[int]]:
    """A database whose events are all in its write-ahead log still, those events, and where each batch ends."""
    source, copy = new_log(tmp_path / "log.db"), tmp_path / "copy.db"

    async def write() -> tuple[list[Recorded], set[int]]:
        store = SQLiteStore.open(source, clock=ManualClock(), writer="w")
        recorded: list[Recorded] = []
        ends = {0}
        for size in [1, 2, 40, 3, 1, 130, 7, 1, 1, 60, 2, 5, 90, 1, 4]:
            recorded += store.append_all([dispatched(), *[reported()] * (size - 1)])
            await store.flushed(recorded[-1].seq)
            ends.add(recorded[-1].seq)
        for suffix in ("", "-wal"):
            shutil.copy(f"{source}{suffix}", f"{copy}{suffix}")
        await store.close()
        return recorded, ends

    return copy, *asyncio.run(write())


def tear(torn: tuple[Path, list[Recorded], set[int]], chance: random.Random) -> int:
    """Damage the write-ahead log at a random byte, and return how many events survive of a sound log."""
    source, recorded, ends = torn
    path = source.with_name("torn.db")
    wal = bytearray(source.with_name("copy.db-wal").read_bytes())
    at = chance.randrange(len(wal))
    if chance.random() < 0.5:
        del wal[at:]
    else:
        wal[at] ^= 1 << chance.randrange(8)
    path.with_name("torn.db-shm").unlink(missing_ok=True)
    shutil.copy(source, path)
    path.with_name("torn.db-wal").write_bytes(wal)
    found = audit(path)
    assert len(found) in ends
    assert found == recorded[: len(found)]
    return len(found)


def test_a_torn_write_ahead_log_gives_a_gapless_prefix(torn: tuple[Path, list[Recorded], set[int]]) -> None:
    chance = random.Random(1)
    survivors = {tear(torn, chance) for _ in range(20)}
    assert len(survivors) > 3  # else the damage did nothing


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_torn_logs_give_gapless_prefixes(torn: tuple[Path, list[Recorded], set[int]]) -> None:
    chance = random.Random(int.from_bytes(os.urandom(4), "big"))
    for _ in range(200):
        tear(torn, chance)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM events WHERE position = 3",
        "DELETE FROM telemetry WHERE position = 2",
        "UPDATE log_head SET position = 9",
    ],
)
def test_the_audit_notices_a_missing_row(tmp_path: Path, damage: str) -> None:
    path = new_log(tmp_path / "log.db")

    async def write() -> None:
        store = SQLiteStore.open(path, clock=ManualClock(), writer="w")
        for event in (dispatched(), reported(), dispatched(), dispatched()):
            store.append(event)
        await store.close()

    asyncio.run(write())
    assert len(audit(path)) == 4
    with closing(driver.connect(str(path), isolation_level=None)) as connection:
        connection.execute(damage)
    with pytest.raises(AssertionError):
        audit(path)


async def test_a_router_goes_on_after_a_torn_log(torn: tuple[Path, list[Recorded], set[int]]) -> None:
    path = torn[0]
    wal = path.with_name("copy.db-wal")
    wal.write_bytes(wal.read_bytes()[:-5000])
    store = SQLiteStore.open(path, clock=ManualClock(), writer="w")
    head = store.state.head
    assert 0 < head < len(torn[1])
    recorded = store.append(dispatched())
    assert recorded.seq == recorded.writer_seq == head + 1
    await store.close()
    assert len(audit(path)) == head + 1
