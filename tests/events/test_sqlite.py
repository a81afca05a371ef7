"""What only a log on a disk can do: outlive its process, be opened twice, belong to somebody else, or be too new."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from events.clock import ManualClock
from events.codec import Codec
from events.recorded import Recorded
from events.sqlite import Reader, SQLiteStore, database, driver, open_readonly
from events.sqlite.rows import ROWS_MAX
from events.sqlite.writer import SNAPSHOTS_KEPT
from events.store import (
    ForeignDatabase,
    Read,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreInUse,
    StoreUnavailable,
    UnknownEvent,
)
from events.types import Event, LogInterrupted, NodeReported, RequestDispatched, RequestFinished, RouterStarted
from projections.tables import TraceTable
from tests.events.databases import new_log
from tests.events.test_codec import UPCASTS, Renamed
from tests.events.test_store_contract import MIXED, dispatched, reported
from tests.given import given, served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_log(tmp_path / "log.db")


@asynccontextmanager
async def opened(path: Path, writer: str = "test", **options: Any) -> "AsyncGenerator[SQLiteStore]":
    store = SQLiteStore.open(path, clock=options.pop("clock", ManualClock()), writer=writer, **options)
    try:
        yield store
    finally:
        await store.close()


async def append(store: SQLiteStore, *events: Event) -> list[Recorded]:
    recorded = [store.append(event) for event in events]
    await store.flushed(recorded[-1].seq)
    return recorded


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(database.connect_reader(path)) as connection:
        return connection.execute(sql).fetchall()


@contextmanager
def edited(path: Path) -> Generator[Any]:
    """A connection of somebody who does what a router would not."""
    with closing(driver.connect(str(path), isolation_level=None)) as connection:
        yield connection


def size(path: Path) -> int:
    return path.stat().st_size


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- again ----------------------------------------------------------------------------------------------------------


async def test_a_reopened_log_goes_on_where_it_ended(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock=clock) as store:
        first = await append(store, *MIXED)
    clock.advance(s=-3600)
    async with opened(path, clock=clock) as store:
        assert (store.state.head, store.state.durable) == (8, 8)
        assert list(store.read()) == first
        (ninth,) = await append(store, dispatched())
        assert (ninth.seq, ninth.writer_seq, ninth.at) == (9, 9, first[-1].at)


async def test_each_writer_counts_for_itself(path: Path) -> None:
    for name, counts in (("a", [1, 2]), ("b", [1, 2]), ("a", [3, 4]), ("c", [1, 2]), ("b", [3, 4])):
        async with opened(path, name) as store:
            recorded = await append(store, reported(), dispatched())
            assert [each.writer_seq for each in recorded] == counts
            assert {each.writer for each in store.read()} >= {name}
    with closing(open_readonly(path)) as reader:
        assert [each.writer for each in reader.read()] == [*"aabbaaccbb"]


async def test_what_is_queued_at_the_end_is_stored(path: Path) -> None:
    async with opened(path) as store:
        recorded = [store.append(event) for event in MIXED * 300]
    with closing(open_readonly(path)) as reader:
        assert list(reader.read()) == recorded


async def test_a_known_id_is_known_after_a_restart(path: Path) -> None:
    async with opened(path) as store:
        given = store.append(reported(), id="order 66")
        own = store.append(dispatched())
    async with opened(path) as store:
        assert store.append(reported(), id="order 66") == given
        assert store.append(dispatched(), id=own.id) == own
        assert store.state.head == 2


async def test_readings_are_kept_apart_from_what_is_kept_for_ever(path: Path) -> None:
    async with opened(path) as store:
        await append(store, *MIXED)
    assert rows(path, "SELECT position FROM telemetry ORDER BY 1") == [(2,), (4,), (7,)]
    assert rows(path, "SELECT position FROM events ORDER BY 1") == [(1,), (3,), (5,), (6,), (8,)]


@pytest.mark.parametrize("count", [1, 2, 3, 127, 128, 129, 511, 512, 513, 3 * ROWS_MAX + 1])
async def test_batches_of_any_size_are_written_whole(path: Path, count: int) -> None:
    async with opened(path) as store:
        await append(store, *[dispatched(f"r{number}") for number in range(count)])
        assert [each.stream for each in store.read()] == [f"request/r{number}" for number in range(count)]


async def test_durability_is_as_asked(path: Path) -> None:
    for durability, expected in (("full", 2), ("normal", 1)):
        with closing(database.connect_writer(path, durability)) as connection:  # pyright: ignore[reportArgumentType]  # both are
            assert connection.execute("PRAGMA synchronous").fetchone() == (expected,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
            assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


async def test_the_write_ahead_log_is_moved_into_the_database(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(12):
            await append(store, *[dispatched()] * 2000)
        assert size(path) > 1_000_000  # all of it would be in the other file
    assert not path.with_name("log.db-wal").exists()


# --- two at once ----------------------------------------------------------------------------------------------------


async def test_a_second_router_is_told_who_has_the_log(path: Path) -> None:
    async with opened(path) as store:
        await append(store, reported())
        with pytest.raises(StoreInUse, match=rf"{path}.*process {os.getpid()}\b"):
            SQLiteStore.open(path, clock=ManualClock(), writer="second")
        await append(store, reported())
    async with opened(path, "second") as store:
        assert store.state.head == 2


async def test_a_router_that_was_replaced_stops_writing(path: Path) -> None:
    store = SQLiteStore.open(path, clock=ManualClock(), writer="old")
    await append(store, reported())
    with edited(path) as connection:  # as a router would on a file system whose locks do not work
        connection.execute("UPDATE log_head SET epoch = epoch + 1")
    late = store.append(dispatched())
    with pytest.raises(StoreInUse, match="another router has taken over"):
        await store.flushed(late.seq)
    store.append(dispatched())
    with pytest.raises(StoreInUse, match="another router has taken over"):
        await store.flushed(store.state.head)
    with pytest.raises(StoreInUse, match="2 events could not be stored"):
        await store.close()
    assert rows(path, "SELECT count(*) FROM events") == [(0,)]
    async with opened(path, "new") as store:
        assert (await append(store, dispatched()))[0].seq == 2


@pytest.mark.parametrize("asked_first", [True, False])
async def test_whoever_runs_a_router_that_was_replaced_is_told(path: Path, asked_first: bool) -> None:
    store = SQLiteStore.open(path, clock=ManualClock(), writer="old")
    telling = asyncio.create_task(store.replaced())
    if not asked_first:
        telling.cancel()
    await asyncio.sleep(0)
    with edited(path) as connection:
        connection.execute("UPDATE log_head SET epoch = epoch + 1")
    store.append(dispatched())
    async with asyncio.timeout(5):
        if asked_first:
            await telling
        else:
            with pytest.raises(StoreInUse):
                await store.flushed(store.state.head)
            await store.replaced()
    with pytest.raises(StoreInUse):
        await store.close()


async def test_a_clock_that_was_set_back_goes_on_from_the_last_event_at_its_own_pace(path: Path) -> None:
    async with opened(path) as store:
        (last,) = await append(store, dispatched())
    clock = ManualClock(last.at - 3_600_000_000_000)
    store = SQLiteStore.open(path, clock=clock, writer="w")
    assert store.stamp() == last.at
    first = store.append(dispatched())
    clock.advance(s=30)
    second = store.append_all([dispatched()])[0]
    third = store.append(dispatched())
    assert store.stamp() == third.at
    await store.close()
    assert [each.at - last.at for each in (first, second, third)] == [0, 30_000_000_000, 30_000_000_000]


async def test_a_failed_opening_leaves_no_lock_behind(path: Path) -> None:
    def refuse(path: Path, durability: object) -> Any:
        raise driver.Error("no")

    with pytest.raises(StoreUnavailable, match=r"cannot open the event log .*: no") as refusal:
        SQLiteStore.open(path, clock=ManualClock(), writer="w", connect=refuse)
    async with opened(path) as store:
        await append(store, reported())
    assert refusal.tb is not None  # or the lock might have gone with the frame that held it


# --- somebody else's ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["request_traces", "latency_observations", "alembic_version"])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_foreign_database_is_left_as_it_is(tmp_path: Path, table: str, mode: str) -> None:
    path = tmp_path / "latency.db"
    with edited(path) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, model TEXT)")
        connection.execute(f"INSERT INTO {table} (model) VALUES ('llama3')")
    before = digest(path)
    with pytest.raises(ForeignDatabase, match=rf"latency.db is the database of another program.*{table}"):
        SQLiteStore.open(path, clock=ManualClock(), writer="w")
    with pytest.raises(ForeignDatabase):
        open_readonly(path)
    assert digest(path) == before
    assert not path.with_name("latency.db.lock").exists()


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"Dear diary, today was a fine day for writing things down. " * 100)
    before = digest(path)
    with pytest.raises(ForeignDatabase, match="not an event log"):
        SQLiteStore.open(path, clock=ManualClock(), writer="w")
    assert digest(path) == before


@pytest.mark.parametrize(("table", "said"), [("log_head", "where it ends"), ("alembic_version", "its revision")])
async def test_a_log_without_what_it_needs_says_what_is_missing(path: Path, table: str, said: str) -> None:
    async with opened(path) as store:
        await append(store, dispatched())
    with edited(path) as connection:
        connection.execute(f"DELETE FROM {table}")
    for _ in range(2):  # nothing is put into it
        with pytest.raises(StoreDamaged, match=rf"{said} \(the table {table} is empty\).*backup"):
            SQLiteStore.open(path, clock=ManualClock(), writer="test")
    with pytest.raises(StoreDamaged, match=said), closing(open_readonly(path)) as reader:
        list(reader.read())


@pytest.mark.parametrize("table", ["checkpoints", "snapshots", "request_traces"])
async def test_a_table_that_can_be_filled_from_the_log_is_made_again(path: Path, table: str) -> None:
    def schema() -> list[tuple[Any, ...]]:
        return rows(path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")

    def traces() -> list[tuple[Any, ...]]:
        return rows(path, "SELECT request_id, status FROM request_traces ORDER BY id")

    async with opened(path, projections=[TraceTable(path)]) as store:
        await append(store, *(recorded.event for recorded in given(served("a", "ash"), served("b", "ash")).log))
    before, whole = schema(), traces()
    assert len(whole) == 2
    with edited(path) as connection:
        connection.execute(f"DROP TABLE {table}")
    async with opened(path, projections=[TraceTable(path)]) as store:
        assert store.state.failure == ""
    assert schema() == before
    assert traces() == whole


async def test_an_empty_file_becomes_a_log(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "log.db"
    path.parent.mkdir(parents=True)
    path.touch()
    async with opened(path) as store:
        await append(store, reported())


# --- places that cannot be written ----------------------------------------------------------------------------------


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A log in a directory that every user can reach; pytest's own are private to one."""
    with TemporaryDirectory() as directory:
        home = Path(directory)
        home.chmod(0o755)
        yield new_log(home / "log.db")
        home.chmod(0o755)


@contextmanager
def ordinary_user() -> Generator[None]:
    """File modes mean nothing to root, so let go of its rights."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def make_read_only(directory: Path) -> None:
    for path in directory.iterdir():
        path.chmod(0o444)
    directory.chmod(0o555)


def test_a_directory_that_cannot_be_written_is_named(public_path: Path) -> None:
    make_read_only(public_path.parent)
    with ordinary_user():
        with pytest.raises(StoreUnavailable, match=rf"cannot write {public_path}.*read-only"):
            SQLiteStore.open(public_path, clock=ManualClock(), writer="w")
        with pytest.raises(StoreUnavailable, match=rf"cannot write {public_path.parent}/new.*: Permission denied"):
            SQLiteStore.open(public_path.parent / "new" / "log.db", clock=ManualClock(), writer="w")


async def test_a_log_in_a_directory_that_cannot_be_written_can_be_read(public_path: Path) -> None:
    async with opened(public_path) as store:
        recorded = await append(store, *MIXED)
    make_read_only(public_path.parent)
    with ordinary_user(), closing(open_readonly(public_path)) as reader:
        assert list(reader.read()) == recorded


def test_a_file_that_cannot_be_read_is_named(public_path: Path) -> None:
    public_path.chmod(0o000)
    with ordinary_user(), pytest.raises(StoreUnavailable, match=f"cannot read {public_path}"):
        open_readonly(public_path)


# --- reading beside a router ----------------------------------------------------------------------------------------


async def test_a_command_reads_while_the_router_writes(path: Path) -> None:
    async with opened(path) as store:
        first = await append(store, *MIXED)
        with closing(open_readonly(path)) as reader:
            assert list(reader.read()) == first
            assert reader.head == 8
            second = await append(store, *MIXED)
            assert list(reader.read(8)) == second
            assert reader.load_snapshot("fleet", 1) is None


def test_a_command_reads_in_another_process(path: Path) -> None:
    async def write() -> None:
        async with opened(path) as store:
            await append(store, *MIXED)
            code = (
                "import sys; from events.sqlite import open_readonly\n"
                "reader = open_readonly(sys.argv[1]); print(reader.head, len(list(reader.read()))); reader.close()"
            )
            command = [sys.executable, "-c", code, str(path)]
            found = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, check=True)
            assert found.stdout == b"8 8\n"

    asyncio.run(write())


async def test_a_reader_can_do_no_harm(path: Path) -> None:
    async with opened(path) as store:
        await append(store, *MIXED)
        with closing(database.connect_reader(path)) as connection, pytest.raises(driver.Error, match="readonly"):
            connection.execute("DELETE FROM events")


def test_where_there_is_no_log_there_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no event log"):
        open_readonly(tmp_path / "log.db")
    assert list(tmp_path.iterdir()) == []


async def test_a_closed_log_is_not_read(path: Path) -> None:
    async with opened(path) as store:
        await append(store, *MIXED)
    with pytest.raises(StoreClosed):
        list(store.read())


# --- old, new and broken events -------------------------------------------------------------------------------------


async def test_old_events_are_read_in_todays_words(path: Path) -> None:
    async with opened(path) as store:
        (stored,) = await append(store, RouterStarted(version="1"))
    with edited(path) as connection:
        connection.execute("""UPDATE events SET payload = CAST('{"type":"test.renamed","ms":1500}' AS BLOB)""")
    with closing(Reader(lambda: database.connect_reader(path), Codec(Renamed, UPCASTS))) as reader:
        (old,) = reader.read()
        assert old.event == Renamed(elapsed_s=1.5)
        assert (old.schema, old.id) == (1, stored.id)


async def test_an_event_of_a_later_release_names_that_release(path: Path) -> None:
    async with opened(path) as store:
        await append(store, reported(), RouterStarted(version="1"))
    with edited(path) as connection:
        connection.execute("""UPDATE events SET payload = CAST('{"type":"node.teleported"}' AS BLOB)""")
        connection.execute(
            "UPDATE event_types SET name = 'node.teleported', release = '9.4' WHERE name = 'router.started'"
        )
    with closing(open_readonly(path)) as reader:
        assert next(reader.read()).seq == 1
        with pytest.raises(UnknownEvent, match=r"position 2: .*'node\.teleported'.*Herd 9\.4 or later"):
            list(reader.read())


async def test_a_later_version_of_a_known_event_names_no_release(path: Path) -> None:
    async with opened(path) as store:
        await append(store, RouterStarted(version="1"))
    with edited(path) as connection:
        connection.execute("UPDATE events SET schema = 2")
        connection.execute("UPDATE event_types SET release = '0.1'")
    with closing(open_readonly(path)) as reader, pytest.raises(UnknownEvent, match="with a later release"):
        list(reader.read())


async def test_a_damaged_event_is_named_by_its_position(path: Path) -> None:
    async with opened(path) as store:
        await append(store, reported(), dispatched())
    with edited(path) as connection:
        connection.execute("UPDATE events SET payload = x'00'")
    with closing(open_readonly(path)) as reader, pytest.raises(StoreError, match=r"position 2: .*decoded"):
        list(reader.read())


async def test_an_event_that_cannot_be_written_becomes_a_recorded_loss(path: Path) -> None:
    async with opened(path) as store:
        broken = store.append(dispatched("\udc80"))
        for _ in ("while it waits", "later"):
            with pytest.raises(StoreUnavailable, match=r"lost: request\.dispatched could not be encoded"):
                await store.flushed(broken.seq)
        (after,) = await append(store, dispatched())
        found = list(store.read())
        assert [each.seq for each in found] == [1, 2]
        assert found[0].id == broken.id
        lost = found[0].event
        assert isinstance(lost, LogInterrupted)
        assert lost.lost == 1
        assert "request.dispatched could not be encoded" in lost.why
        assert found[1] == after


# --- snapshots ------------------------------------------------------------------------------------------------------


async def test_snapshots_outlive_the_process(path: Path) -> None:
    async with opened(path) as store:
        await append(store, *MIXED)
        store.save_snapshot("fleet", 1, 8, b"state")
    async with opened(path) as store:
        assert store.load_snapshot("fleet", 1) == (8, b"state")
    with closing(open_readonly(path)) as reader:
        assert reader.load_snapshot("fleet", 1) == (8, b"state")


async def test_only_the_newest_snapshots_are_kept(path: Path) -> None:
    clock = ManualClock()
    for _ in range(SNAPSHOTS_KEPT + 3):
        async with opened(path, clock=clock) as store:
            (last,) = await append(store, reported())
            clock.advance(s=1)
            store.save_snapshot("fleet", 1, last.seq, b"%d" % last.seq)
            store.save_snapshot("other", 1, 1, b"other")
    assert rows(path, "SELECT count(*) FROM snapshots WHERE projection = 'fleet'") == [(SNAPSHOTS_KEPT,)]
    assert rows(path, "SELECT max(position) FROM snapshots WHERE projection = 'fleet'") == [(SNAPSHOTS_KEPT + 3,)]
    assert rows(path, "SELECT count(*) FROM snapshots WHERE projection = 'other'") == [(1,)]


async def test_a_torn_snapshot_falls_back_to_the_one_before(path: Path) -> None:
    for position in (1, 2):
        async with opened(path) as store:
            await append(store, reported())
            store.save_snapshot("fleet", 1, position, b"state %d" % position)
    with edited(path) as connection:
        connection.execute("UPDATE snapshots SET state = x'0000' WHERE position = 2")
    async with opened(path) as store:
        assert store.load_snapshot("fleet", 1) == (1, b"state 1")
    with edited(path) as connection:
        connection.execute("UPDATE snapshots SET state = x'0000'")
    async with opened(path) as store:
        assert store.load_snapshot("fleet", 1) is None


async def test_a_snapshot_never_knows_more_than_the_log(path: Path) -> None:
    async with opened(path) as store:
        await append(store, reported())
        store.save_snapshot("fleet", 1, 5, b"from the future")
        await append(store, reported())
    assert rows(path, "SELECT count(*) FROM snapshots") == [(0,)]
    with edited(path) as connection:
        connection.execute(
            "INSERT INTO snapshots (projection, version, position, at, crc32, state) VALUES ('fleet', 1, 9, 0, 0, x'')"
        )
    with closing(open_readonly(path)) as reader:
        assert reader.load_snapshot("fleet", 1) is None


# --- views in the same transaction ----------------------------------------------------------------------------------


class Counted:
    """A view: how many events each stream has."""

    name = "counted"

    def __init__(self, poison: Callable[[Recorded], bool] = lambda _: False) -> None:
        self.poison = poison
        self.waiting: list[Recorded] = []
        self.position = 0
        self.writes = 0
        self.started_after: list[int] = []

    def start(self, cursor: Any, head: int, read: Read) -> None:
        cursor.execute("CREATE TABLE IF NOT EXISTS counted (stream TEXT PRIMARY KEY, events INTEGER)")
        row = cursor.execute("SELECT position FROM checkpoints WHERE projection = 'counted'").fetchone()
        self.position = row[0] if row else 0
        self.started_after.append(self.position)
        self.waiting = list(read(self.position))
        assert [each.seq for each in self.waiting] == list(range(self.position + 1, head + 1))
        self.write(cursor)
        self.written()

    def follow(self, batch: Sequence[Recorded]) -> bool:
        self.waiting += batch
        return True

    def write(self, cursor: Any) -> None:
        for recorded in self.waiting:
            if self.poison(recorded):
                raise KeyError(recorded.stream)
            cursor.execute(
                "INSERT INTO counted VALUES (?, 1) ON CONFLICT (stream) DO UPDATE SET events = events + 1",
                (recorded.stream,),
            )
        cursor.execute(
            "INSERT OR REPLACE INTO checkpoints (projection, version, position) VALUES ('counted', 1, ?)",
            (self.waiting[-1].seq if self.waiting else self.position,),
        )

    def written(self) -> None:
        self.writes += 1
        self.position = self.waiting[-1].seq if self.waiting else self.position
        self.waiting = []


COUNTED = "SELECT stream, events FROM counted ORDER BY stream"
MIXED_COUNTED = [("node/ash", 2), ("node/oak", 2), ("request/r1", 3), ("router", 1)]


async def test_a_view_is_as_new_as_the_log(path: Path) -> None:
    async with opened(path, projections=[Counted()]) as store:
        for times in (1, 2, 3):
            await append(store, *MIXED)
            assert rows(path, COUNTED) == [(stream, count * times) for stream, count in MIXED_COUNTED]


async def test_a_view_catches_up_with_what_it_missed(path: Path) -> None:
    async with opened(path) as store:
        await append(store, *MIXED)
    view = Counted()
    async with opened(path, projections=[view]) as store:
        assert rows(path, COUNTED) == MIXED_COUNTED
        await append(store, *MIXED)
    async with opened(path, projections=[view]):
        assert rows(path, COUNTED) == [(stream, 2 * count) for stream, count in MIXED_COUNTED]
    assert view.started_after == [0, 16]


async def test_a_view_with_a_bug_does_not_keep_events_from_the_disk(path: Path) -> None:
    broken = Counted(poison=lambda recorded: isinstance(recorded.event, RequestFinished))
    sound = Counted()
    async with opened(path, projections=[broken]) as store:
        await append(store, reported())
        await append(store, *MIXED)
        await append(store, *MIXED)
        assert len(list(store.read())) == 17
        assert "'counted' is set aside" in store.state.failure
        assert store.state.failing_since is None
        assert rows(path, COUNTED) == [("node/ash", 1)]
    async with opened(path, projections=[broken]) as store:  # it is no better at the start
        assert "'counted' is set aside" in store.state.failure
        await append(store, reported())
    async with opened(path, projections=[sound]) as store:
        assert store.state.failure == ""
        assert sum(count for _, count in rows(path, COUNTED)) == 18


async def test_a_view_sees_the_loss_in_the_place_of_what_could_not_be_written(path: Path) -> None:
    async with opened(path, projections=[Counted()]) as store:
        store.append(dispatched("\udc80"))
    assert rows(path, COUNTED) == [("router", 1)]


async def unasked(done: Callable[[], bool]) -> None:
    """Wait for what the store does by itself, without `flushed`, which would hurry it."""
    async with asyncio.timeout(5):
        while not done():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)


async def test_a_view_that_is_not_awaited_is_written_after_a_moment(path: Path) -> None:
    async with opened(path, projections=[Counted()]) as store:
        store.append(dispatched())
        await unasked(lambda: bool(rows(path, COUNTED)))
        assert store.state.queued == 0


async def test_what_is_stored_but_not_in_the_views_can_be_awaited(path: Path) -> None:
    async with opened(path, projections=[Counted()]) as store:
        for count in range(1, 4):
            recorded = store.append(dispatched())
            await unasked(lambda: not store.state.queued)
            await store.flushed(recorded.seq)
            assert rows(path, COUNTED) == [("request/r1", count)]


async def test_a_view_is_not_written_with_each_batch_but_is_whole_in_the_end(path: Path) -> None:
    view = Counted()
    async with opened(path, projections=[view]) as store:
        for _ in range(5):
            store.append(dispatched())
            await unasked(lambda: not store.state.queued)
    assert rows(path, COUNTED) == [("request/r1", 5)]
    assert view.writes < 5


# --- starting -------------------------------------------------------------------------------------------------------


def test_a_log_that_is_up_to_date_is_opened_without_the_heavy_libraries(path: Path) -> None:
    code = (
        "import sys, asyncio\n"
        "from events.clock import SystemClock; from events.sqlite import SQLiteStore\n"
        "store = SQLiteStore.open(sys.argv[1], clock=SystemClock(), writer='w')\n"
        "asyncio.run(store.close())\n"
        "print([name for name in ('alembic', 'sqlalchemy', 'polars') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, check=True)
    assert found.stdout == b"[]\n"


def test_events_of_these_tests_cover_both_tables() -> None:
    assert NodeReported.telemetry
    assert not RequestDispatched.telemetry
