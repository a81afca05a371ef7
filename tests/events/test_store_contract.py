"""One suite for every store: what it promises may not depend on where it keeps things.

A new implementation is one entry in `IMPLEMENTATIONS`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.clock import ManualClock
from events.memory import MemoryStore
from events.recorded import Recorded
from events.sqlite import SQLiteStore
from events.store import EventStore, StoreClosed
from events.types import (
    Event,
    NodeReported,
    NodeStatusChanged,
    RequestDispatched,
    RequestFinished,
    RouteChosen,
    RouterStarted,
)


def memory(directory: Path, clock: ManualClock) -> EventStore:
    return MemoryStore(clock, writer="test")


def sqlite(directory: Path, clock: ManualClock) -> EventStore:
    return SQLiteStore.open(directory / "log.db", clock=clock, writer="test")


IMPLEMENTATIONS: tuple[Callable[[Path, ManualClock], EventStore], ...] = (memory, sqlite)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda implementation: implementation.__name__)
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[EventStore]:
    opened: EventStore = request.param(tmp_path, clock)
    yield opened
    await opened.close()


def reported(node: str = "ash", cpu_pct: float = 1.0) -> NodeReported:
    return NodeReported(node=node, cpu_pct=cpu_pct)


def dispatched(request: str = "r1", attempt: int = 1) -> RequestDispatched:
    return RequestDispatched(request=request, attempt=attempt, node="ash", model="m")


def chosen(request: str = "r1") -> RouteChosen:
    return RouteChosen(request=request, attempt=1, model="m", policy="p", policy_hash="h", node="ash", score=0.1)


MIXED: tuple[Event, ...] = (
    RouterStarted(version="1"),
    reported("ash"),
    chosen("r1"),
    reported("oak"),
    dispatched("r1"),
    NodeStatusChanged(node="oak", status="offline"),
    reported("ash"),
    RequestFinished(request="r1", outcome="completed"),
)


async def stored(store: EventStore, events: Sequence[Event]) -> list[Recorded]:
    recorded = [store.append(event) for event in events]
    await store.flushed(recorded[-1].seq)
    return recorded


async def follow(store: EventStore, after: int, count: int) -> list[Recorded]:
    found: list[Recorded] = []
    tail = store.tail(after)
    async for recorded in tail:
        found.append(recorded)
        if len(found) == count:
            break
    await tail.aclose()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # a generator in fact
    return found


# --- order ----------------------------------------------------------------------------------------------------------


async def test_events_get_consecutive_positions_from_one(store: EventStore) -> None:
    recorded = [store.append(event) for event in MIXED]
    assert [each.seq for each in recorded] == list(range(1, 9))
    assert [each.writer_seq for each in recorded] == list(range(1, 9))
    assert {each.writer for each in recorded} == {store.writer} == {"test"}
    assert len({each.id for each in recorded}) == 8
    assert store.state.head == 8


async def test_what_is_stored_is_what_was_returned(store: EventStore) -> None:
    recorded = await stored(store, MIXED)
    assert list(store.read()) == recorded


async def test_an_event_remembers_its_cause_and_its_version(store: EventStore) -> None:
    first = store.append(chosen())
    second = store.append(dispatched(), cause=first.id)
    third = store.append(dispatched(), cause="not a uuid")
    await store.flushed(third.seq)
    assert [each.cause for each in store.read()] == [None, first.id, "not a uuid"]
    assert [each.schema for each in store.read()] == [1, 1, 1]
    assert second.cause == first.id


async def test_time_never_runs_backwards(store: EventStore, clock: ManualClock) -> None:
    start = clock.now()
    assert store.append(reported()).at == start
    assert store.append(reported(), at=start + 50).at == start + 50
    assert store.append(reported(), at=start - 50).at == start + 50
    assert store.append(reported()).at == start + 50
    clock.advance(ns=70)
    assert store.append(reported()).at == start + 70


async def test_a_stamp_is_the_time_of_an_event_appended_now(store: EventStore, clock: ManualClock) -> None:
    store.append(reported(), at=clock.now() + 100)
    stamp = store.stamp()
    assert stamp == clock.now() + 100
    assert store.append(reported()).at == stamp
    clock.advance(ns=1000)
    assert store.stamp() == clock.now()


# --- several at once ------------------------------------------------------------------------------------------------


async def test_several_events_are_appended_in_a_row(store: EventStore) -> None:
    cause = store.append(chosen())
    recorded = store.append_all([dispatched(), reported(), dispatched()], cause=cause.id)
    after = store.append(reported())
    await store.flushed(after.seq)
    assert [each.seq for each in recorded] == [2, 3, 4]
    assert {each.cause for each in recorded} == {cause.id}
    assert list(store.read()) == [cause, *recorded, after]


async def test_nothing_appended_is_nothing(store: EventStore) -> None:
    assert store.append_all([]) == []
    assert store.state.head == 0


# --- once -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [dispatched(), reported()], ids=["request", "reading"])
@pytest.mark.parametrize("id_", ["01a2052e65af70088d5cdd6496bdee00", "01A2052E65AF70088D5CDD6496BDEE00", "order 66"])
async def test_the_same_id_is_recorded_once(store: EventStore, event: Event, id_: str) -> None:
    first = store.append(event, id=id_)
    assert first.id == id_
    assert store.append(reported("other"), id=id_) == first
    await store.flushed(first.seq)
    assert store.append(reported("other"), id=id_) == first
    assert list(store.read()) == [first]


async def test_an_id_that_the_store_gave_counts_too(store: EventStore) -> None:
    first = store.append(dispatched())
    assert store.append(dispatched(), id=first.id) == first
    await store.flushed(first.seq)
    assert store.append(dispatched(), id=first.id) == first
    assert store.state.head == 1


async def test_ids_that_differ_are_different_events(store: EventStore) -> None:
    ids = ["ab", "AB", "a b", "01a2052e65af70088d5cdd6496bdee00"]
    recorded = [store.append(dispatched(), id=each) for each in ids]
    await store.flushed(recorded[-1].seq)
    assert [each.id for each in store.read()] == ids


# --- durability -----------------------------------------------------------------------------------------------------


async def test_flushed_means_stored(store: EventStore) -> None:
    for _ in range(3):
        recorded = [store.append(reported()) for _ in range(200)]
        await store.flushed(recorded[-1].seq)
        assert store.state.durable == recorded[-1].seq
        assert store.state.queued == 0
        assert sum(1 for _ in store.read(recorded[0].seq - 1)) == 200


async def test_many_may_await_at_once(store: EventStore) -> None:
    async def one(number: int) -> None:
        await asyncio.sleep(0)
        recorded = store.append(dispatched(f"r{number}"))
        await store.flushed(recorded.seq)
        assert store.state.durable >= recorded.seq

    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(one(number))
    assert {each.stream for each in store.read()} == {f"request/r{number}" for number in range(100)}


async def test_an_empty_log_is_flushed(store: EventStore) -> None:
    await store.flushed(0)


async def test_nobody_can_await_what_was_never_appended(store: EventStore) -> None:
    store.append(reported())
    with pytest.raises(ValueError, match="position 2 has not been appended"):
        await store.flushed(2)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
async def test_reading_is_bounded_and_filtered(store: EventStore, backwards: bool) -> None:
    recorded = await stored(store, MIXED * 20)
    streams = (None, "node/ash", "request/r1", "nothing")
    kinds: tuple[tuple[type[Any], ...] | None, ...] = (None, (NodeReported,), (RouteChosen, RouterStarted), ())
    for after, until in ((0, None), (3, 9), (9, 3), (0, 0), (150, 999), (-5, 4), (160, None)):
        for stream in streams:
            for types in kinds:
                found = list(store.read(after, until=until, types=types, stream=stream, backwards=backwards))
                wanted = [
                    each
                    for each in recorded
                    if after < each.seq <= (until if until is not None else 160)
                    and (types is None or type(each.event) in types)
                    and (stream is None or each.stream == stream)
                ]
                assert found == (wanted[::-1] if backwards else wanted)


async def test_reading_goes_on_over_many_pages(store: EventStore) -> None:
    recorded = await stored(store, [dispatched(f"r{n}") if n % 3 else reported() for n in range(5000)])
    assert [each.seq for each in store.read()] == list(range(1, 5001))
    assert list(store.read(backwards=True)) == recorded[::-1]


async def test_reading_may_stop_early_and_be_mixed_with_writing(store: EventStore) -> None:
    await stored(store, [reported()] * 300)
    reader = store.read()
    assert next(reader).seq == 1
    await stored(store, [reported()] * 300)
    assert next(store.read(backwards=True)).seq == 600
    assert next(reader).seq == 2


# --- following ------------------------------------------------------------------------------------------------------


async def test_a_follower_sees_what_was_and_what_comes(store: EventStore) -> None:
    early = await stored(store, MIXED)
    following = asyncio.create_task(follow(store, 2, 10))
    await asyncio.sleep(0)
    late = [store.append(event) for event in MIXED[:4]]
    assert await following == early[2:] + late


async def test_an_event_reaches_followers_without_the_disk(store: EventStore) -> None:
    following = [asyncio.create_task(follow(store, 0, 3)) for _ in range(5)]
    await asyncio.sleep(0)
    first = store.append(reported())
    pair = store.append_all([reported(), dispatched()])
    assert await asyncio.gather(*following) == [[first, *pair]] * 5


async def test_a_follower_far_behind_misses_nothing(store: EventStore) -> None:
    events = [dispatched(f"r{number}") for number in range(3000)]
    recorded = await stored(store, events[:2500])
    recorded += [store.append(event) for event in events[2500:]]
    assert await follow(store, 0, 3000) == recorded


async def test_a_follower_that_leaves_disturbs_nobody(store: EventStore) -> None:
    leaving = asyncio.create_task(follow(store, 0, 10))
    staying = asyncio.create_task(follow(store, 0, 2))
    await asyncio.sleep(0)
    store.append(reported())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    store.append(reported())
    assert [each.seq for each in await staying] == [1, 2]


async def test_following_ends_with_the_log(store: EventStore) -> None:
    async def all_of() -> list[int]:
        return [each.seq async for each in store.tail(0)]

    following = asyncio.create_task(all_of())
    await asyncio.sleep(0)
    store.append(reported())
    await store.close()
    assert await following == [1]


# --- snapshots ------------------------------------------------------------------------------------------------------


async def test_the_newest_snapshot_is_found(store: EventStore) -> None:
    await stored(store, MIXED)
    assert store.load_snapshot("fleet", 1) is None
    store.save_snapshot("fleet", 1, 3, b"old")
    assert store.load_snapshot("fleet", 1) == (3, b"old")
    store.save_snapshot("fleet", 1, 8, b"\x00new")
    store.save_snapshot("latency", 1, 5, b"other")
    assert store.load_snapshot("fleet", 1) == (8, b"\x00new")
    assert store.load_snapshot("latency", 1) == (5, b"other")
    assert store.load_snapshot("fleet", 2) is None


# --- the end --------------------------------------------------------------------------------------------------------


async def test_a_closed_log_takes_nothing_more(store: EventStore) -> None:
    last = store.append(reported())
    await store.close()
    await store.close()
    with pytest.raises(StoreClosed):
        store.append(reported())
    with pytest.raises(StoreClosed):
        store.append(reported(), id="x")
    with pytest.raises(StoreClosed):
        store.append_all([reported()])
    assert store.state.durable == last.seq
    await store.flushed(last.seq)


async def test_a_working_log_reports_no_failure(store: EventStore) -> None:
    await stored(store, MIXED)
    state = store.state
    assert (state.failing_since, state.failure, state.lost) == (None, "", 0)


# --- all together ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.__name__)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 700), max_size=6))
def test_groups_of_any_size_keep_their_order(
    implementation: Callable[[Path, ManualClock], EventStore],
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
) -> None:
    async def check() -> None:
        store = implementation(tmp_path_factory.mktemp("log"), ManualClock())
        try:
            recorded = [each for size in sizes for each in store.append_all([dispatched(f"r{n}") for n in range(size)])]
            await store.flushed(sum(sizes))
            assert list(store.read()) == recorded
        finally:
            await store.close()

    asyncio.run(check())
