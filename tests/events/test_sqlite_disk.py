"""Disks fill up, come and go, and lie about what they did; the router must go on and the log must not."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest

from events.clock import ManualClock
from events.recorded import Recorded
from events.sqlite import SQLiteStore, database, driver
from events.sqlite.writer import BATCH_MAX, SNAPSHOT_PATIENCE
from events.store import StoreUnavailable
from events.types import Event, LogInterrupted
from projections.tables import TraceTable
from tests.events.databases import new_log
from tests.events.test_store_contract import dispatched, follow, reported

if TYPE_CHECKING:
    from sqlite3 import Connection

    from events.sqlite.database import Durability

ROOT = Path(__file__).parents[2]


class Disk:
    """A disk that fails at a statement, before or after it has done it, for as long as it is told to."""

    def __init__(self) -> None:
        self.fails_at = ""
        self.when: Literal["before", "after"] = "before"
        self.failures = 0
        self.connections = 0
        self.tried = threading.Event()
        self.watch: Callable[[str], object] = lambda _: None
        self.gate = threading.Event()
        self.gate.set()

    def connect(self, path: Path, durability: "Durability") -> "Connection":
        return cast("Connection", FailingConnection(self, database.connect_writer(path, durability)))

    def execute(self, cursor: Any, sql: str, *values: Any) -> Any:
        self.watch(sql)
        if sql == "COMMIT":
            self.gate.wait()
        failing = bool(self.fails_at) and sql.startswith(self.fails_at)
        result = cursor.execute(sql, *values) if not failing or self.when == "after" else None
        if failing:
            self.failures += 1
            self.tried.set()
            raise driver.module.OperationalError("database or disk is full")
        return result


class FailingConnection:
    """Passes on what the disk lets pass."""

    def __init__(self, disk: Disk, connection: "Connection") -> None:
        self.disk, self.real = disk, connection
        disk.connections += 1

    @property
    def in_transaction(self) -> bool:
        return self.real.in_transaction

    def cursor(self) -> "FailingCursor":
        return FailingCursor(self.disk, self.real.cursor())

    def execute(self, sql: str, *values: Any) -> Any:
        return self.disk.execute(self.real.cursor(), sql, *values)

    def rollback(self) -> None:
        self.real.rollback()

    def close(self) -> None:
        self.disk.connections -= 1
        self.real.close()


class FailingCursor:
    def __init__(self, disk: Disk, cursor: Any) -> None:
        self.disk, self.real = disk, cursor

    @property
    def rowcount(self) -> int:
        return self.real.rowcount

    def fetchone(self) -> Any:
        return self.real.fetchone()

    def execute(self, sql: str, *values: Any) -> Any:
        return self.disk.execute(self.real, sql, *values)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path, disk: Disk, clock: ManualClock) -> AsyncIterator[SQLiteStore]:
    opened = SQLiteStore.open(
        new_log(tmp_path / "log.db"), clock=clock, writer="test", queue_max=20, connect=disk.connect
    )
    yield opened
    disk.fails_at = ""
    disk.gate.set()
    await opened.close()


async def failing(store: SQLiteStore, disk: Disk, at: str = "INSERT") -> Recorded:
    """Let the disk fail, append an event and return when the store has noticed."""
    disk.fails_at = at
    recorded = store.append(dispatched())
    with pytest.raises(StoreUnavailable, match="disk is full"):
        await store.flushed(recorded.seq)
    return recorded


async def recovered(store: SQLiteStore, disk: Disk) -> None:
    """Let the disk work again and return when everything is stored."""
    disk.fails_at = ""
    disk.gate.set()
    while store.state.queued:
        try:
            await store.flushed(store.state.head)
        except StoreUnavailable:
            await asyncio.sleep(0.01)  # it has not tried again yet


def positions(store: SQLiteStore) -> list[int]:
    return [recorded.seq for recorded in store.read()]


@pytest.mark.parametrize("at", ["BEGIN", "INSERT", "UPDATE log_head", "COMMIT"])
async def test_the_store_goes_on_while_the_disk_is_full_and_recovers_by_itself(
    store: SQLiteStore, disk: Disk, clock: ManualClock, at: str
) -> None:
    clock.advance(s=5)
    before = await failing(store, disk, at)
    state = store.state
    assert state.failing_since == clock.now()
    assert "disk is full" in state.failure
    assert (state.durable, state.lost) == (0, 0)
    more = [store.append(dispatched()) for _ in range(5)]
    assert [each.seq for each in more] == [2, 3, 4, 5, 6]
    await recovered(store, disk)
    assert list(store.read()) == [before, *more]
    assert (store.state.failing_since, store.state.failure, store.state.lost) == (None, "", 0)
    assert disk.connections == 1


async def test_a_commit_in_doubt_is_not_repeated(store: SQLiteStore, disk: Disk) -> None:
    disk.when = "after"
    first = await failing(store, disk, "COMMIT")
    second = store.append(reported())
    await recovered(store, disk)
    assert disk.failures >= 1
    assert list(store.read()) == [first, second]


async def test_everybody_who_waits_is_told_at_once(store: SQLiteStore, disk: Disk) -> None:
    disk.gate.clear()
    waiting = [asyncio.create_task(store.flushed(store.append(dispatched()).seq)) for _ in range(3)]
    await asyncio.sleep(0)
    disk.fails_at = "COMMIT"
    disk.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3


async def test_events_that_are_lost_leave_no_hole(store: SQLiteStore, disk: Disk, clock: ManualClock) -> None:
    await failing(store, disk)
    kept = [store.append(dispatched()) for _ in range(19)]
    since = store.state.failing_since
    clock.advance(s=1)
    lost = [store.append(dispatched("lost")) for _ in range(7)]
    assert {each.seq for each in lost} == {21}
    assert len({each.id for each in lost}) == 7
    assert store.state.lost == 7
    assert store.state.head == 20
    clock.advance(s=1)
    with pytest.raises(StoreUnavailable, match="this event is lost: database or disk is full"):
        await store.flushed(lost[0].seq)
    await recovered(store, disk)
    assert store.state.head == 21
    after = store.append(dispatched())
    await store.flushed(after.seq)
    assert after.seq == 22
    with pytest.raises(StoreUnavailable, match="was full and this event is lost: database or disk is full"):
        await store.flushed(lost[0].seq)
    assert positions(store) == list(range(1, 23))
    (interruption,) = store.read(20, until=21)
    assert interruption.event == LogInterrupted(
        lost=7, since=since or 0, until=clock.now(), why="database or disk is full"
    )
    assert list(store.read(1, until=20)) == kept
    assert [each.writer_seq for each in store.read()] == list(range(1, 23))
    assert [each.at for each in store.read()] == sorted(each.at for each in store.read())


async def test_a_group_is_lost_or_kept_as_one(store: SQLiteStore, disk: Disk) -> None:
    await failing(store, disk)
    kept = store.append_all([dispatched()] * 10)
    lost = store.append_all([dispatched("lost")] * 10)
    assert [each.seq for each in kept] == list(range(2, 12))
    assert {each.seq for each in lost} == {12}
    after = store.append(dispatched("after"))  # there is room for one
    assert after.seq == 13
    await recovered(store, disk)
    assert positions(store) == list(range(1, 14))
    (interruption,) = store.read(11, until=12)
    assert isinstance(interruption.event, LogInterrupted)
    assert interruption.event.lost == 10


async def test_readings_make_room_for_decisions(store: SQLiteStore, disk: Disk) -> None:
    await failing(store, disk)
    events: list[Event] = [dispatched() if number % 2 else reported() for number in range(16)]
    for event in events:
        store.append(event)
    assert store.state.queued == 17
    store.append(reported("kept"))
    assert store.state.lost == 0
    lost = [store.append(reported("lost")) for _ in range(5)]
    assert store.state.lost == 5
    decision = store.append(dispatched("kept"))
    assert decision.seq == lost[0].seq + 1
    await recovered(store, disk)
    assert positions(store) == list(range(1, decision.seq + 1))
    assert [each.stream for each in store.read(17)] == ["node/kept", "router", "request/kept"]


async def test_a_due_snapshot_does_not_wait_for_an_idle_moment(tmp_path: Path, disk: Disk, clock: ManualClock) -> None:
    store = SQLiteStore.open(
        new_log(tmp_path / "other.db"), clock=clock, writer="test", queue_max=10**6, connect=disk.connect
    )
    disk.gate.clear()
    last = store.append_all([dispatched()] * BATCH_MAX)[-1]
    for _ in range(SNAPSHOT_PATIENCE + 4):
        store.append_all([dispatched()] * BATCH_MAX)
    store.save_snapshot("fleet", 1, last.seq, b"state")
    durable: list[int] = []
    disk.watch = lambda sql: durable.append(store.state.durable) if "INTO snapshots" in sql else None
    disk.gate.set()
    await store.close()
    assert durable == [last.seq + (SNAPSHOT_PATIENCE - 1) * BATCH_MAX]


async def test_each_interruption_has_its_own_count_and_the_store_has_the_sum(
    store: SQLiteStore, disk: Disk, clock: ManualClock
) -> None:
    for losses, sum_of_them in ((3, 3), (2, 5)):
        await failing(store, disk)
        for _ in range(19 + losses):
            store.append(dispatched())
        assert store.state.lost == sum_of_them
        clock.advance(s=1)
        await recovered(store, disk)
    assert positions(store) == list(range(1, 43))
    found = [each.event.lost for each in store.read(types=[LogInterrupted]) if isinstance(each.event, LogInterrupted)]
    assert found == [3, 2]


async def test_an_event_that_was_lost_may_be_appended_again(store: SQLiteStore, disk: Disk) -> None:
    await failing(store, disk)
    for _ in range(19):
        store.append(dispatched())
    store.append(dispatched("again"), id="x")
    await recovered(store, disk)
    again = store.append(dispatched("again"), id="x")
    await store.flushed(again.seq)
    assert [each.id for each in store.read(stream="request/again")] == ["x"]


async def test_a_follower_sees_the_loss_where_it_happened(store: SQLiteStore, disk: Disk) -> None:
    following = asyncio.create_task(follow(store, 0, 22))
    await failing(store, disk)
    for _ in range(22):
        store.append(dispatched())
    await recovered(store, disk)
    store.append(dispatched("after"))
    found = await following
    assert [each.seq for each in found] == list(range(1, 23))
    assert isinstance(found[20].event, LogInterrupted)


async def test_a_follower_reads_what_waits_for_the_disk(tmp_path: Path, disk: Disk, clock: ManualClock) -> None:
    store = SQLiteStore.open(
        new_log(tmp_path / "other.db"), clock=clock, writer="test", queue_max=5000, connect=disk.connect
    )
    await failing(store, disk)
    recorded = store.append_all([dispatched(f"r{number}") for number in range(2000)])
    recorded += [store.append(dispatched()) for _ in range(500)]
    assert await follow(store, 1, 2500) == recorded
    disk.fails_at = ""
    await store.close()


async def test_a_repeated_id_is_found_while_it_waits_for_the_disk(store: SQLiteStore, disk: Disk) -> None:
    first = await failing(store, disk)
    group = store.append_all([dispatched()] * 3)
    assert store.append(dispatched(), id=first.id) == first
    assert store.append(dispatched(), id=group[1].id) == group[1]
    assert store.state.head == 4


async def test_closing_says_what_could_not_be_stored(tmp_path: Path, clock: ManualClock) -> None:
    disk = Disk()
    path = new_log(tmp_path / "other.db")
    store = SQLiteStore.open(path, clock=clock, writer="test", connect=disk.connect, farewell_s=0.2)
    await failing(store, disk)
    store.append(dispatched())
    with pytest.raises(StoreUnavailable, match="2 events could not be stored: database or disk is full"):
        await store.close()
    again = SQLiteStore.open(path, clock=clock, writer="test")
    assert again.state.head == 0
    await again.close()


async def test_closing_waits_for_a_disk_that_comes_back(tmp_path: Path, clock: ManualClock) -> None:
    disk = Disk()
    path = new_log(tmp_path / "other.db")
    store = SQLiteStore.open(path, clock=clock, writer="test", connect=disk.connect)
    recorded = await failing(store, disk)
    disk.fails_at = ""
    await store.close()
    again = SQLiteStore.open(path, clock=clock, writer="test")
    assert list(again.read()) == [recorded]
    await again.close()


def replace(path: Path) -> None:
    """Put a copy in the place of a file."""
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("part", ["", "-wal"])
@pytest.mark.parametrize(("harm", "what"), [(replace, "replaced"), (remove, "removed")])
async def test_a_file_that_is_no_longer_the_one_that_was_opened_is_noticed(
    tmp_path: Path, clock: ManualClock, part: str, harm: Callable[[Path], None], what: str
) -> None:
    path = new_log(tmp_path / "log.db")
    store = SQLiteStore.open(path, clock=clock, writer="test", farewell_s=0.1)
    before = store.append(dispatched())
    await store.flushed(before.seq)
    harm(Path(f"{path}{part}"))
    late = store.append(dispatched())
    with pytest.raises(StoreUnavailable, match=f"log.db{part} was {what} while the router runs: restart it"):
        await store.flushed(late.seq)
    assert store.state.failing_since is not None
    with pytest.raises(StoreUnavailable, match=f"was {what} while the router runs"):
        TraceTable(path).recent()
    store._reader._idle.clear()  # pyright: ignore[reportPrivateUsage]  # what is open reads on from the old file
    with pytest.raises(StoreUnavailable, match=f"was {what} while the router runs"):
        list(store.read())
    with pytest.raises(StoreUnavailable, match="1 events could not be stored"):
        await store.close()


async def test_a_file_that_was_put_back_is_written_again(tmp_path: Path, clock: ManualClock) -> None:
    path, away = new_log(tmp_path / "log.db"), tmp_path / "away.db"
    store = SQLiteStore.open(path, clock=clock, writer="test")
    path.rename(away)
    recorded = store.append(dispatched())
    with pytest.raises(StoreUnavailable, match="removed"):
        await store.flushed(recorded.seq)
    away.rename(path)
    await store.close()
    assert store.state.failing_since is None
    again = SQLiteStore.open(path, clock=clock, writer="test")  # and once it is closed, the name may mean another file
    assert list(again.read()) == [recorded]
    await again.close()
    replace(path)
    again = SQLiteStore.open(path, clock=clock, writer="test")
    await again.close()


def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    """A limit on the size of files is a full disk as far as SQLite can tell; it needs a process of its own."""
    command = [sys.executable, "-m", "tests.events.full_disk", str(new_log(tmp_path / "log.db"))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["failure"] != ""
    assert report["lost"] > 0
    assert report["positions"] == list(range(1, report["head"] + 1))
    assert sum(report["interrupted"]) == report["lost"]
    assert report["integrity"] == "ok"
