"""The way back to a view: snapshot, tail, and the proof that both are what the log says."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from events.clock import ManualClock
from events.memory import MemoryStore
from events.sqlite import SQLiteStore, driver
from events.store import StoreUnavailable
from events.types import RequestFinished, RouteChosen
from projections.runner import DIFFERENCES_MAX, Snapshotter, abandoned, restore, save, verify, verify_file
from projections.tables import TraceTable, to_row
from projections.view import VIEW, View, decode, encode
from tests.events.test_sqlite import make_read_only, ordinary_user, public_path
from tests.given import (
    START,
    History,
    attempt_failed,
    chosen,
    dispatched,
    enqueued,
    finished,
    given,
    joined,
    later,
    online,
    received,
    residing,
    served,
    stocked,
)

__all__ = ["public_path"]  # a fixture

BUSY = given(
    joined("ash"),
    stocked("ash", "llama3"),
    residing("ash", "llama3"),
    online("ash"),
    served("a", "ash", ms=300, prompt_tokens=5, prompt_ms=10),
    received("b"),
    chosen("b", "ash"),
    enqueued("b", "ash"),
    later(s=1),
    received("c"),
    chosen("c", "ash"),
    dispatched("c", "ash"),
)


class CountingStore(MemoryStore):
    """Tells what it was asked to read."""

    def __init__(self) -> None:
        super().__init__(ManualClock(START))
        self.yielded: list[type] = []

    def read(self, after: int = 0, **options: Any) -> Any:
        for recorded in super().read(after, **options):
            self.yielded.append(type(recorded.event))
            yield recorded


def stored(history: History) -> CountingStore:
    store = CountingStore()
    for recorded in history.log:
        store.append(recorded.event, at=recorded.at)
    return store


@drawn(st.integers(0, len(BUSY.log)))
def test_a_snapshot_and_what_happened_since_give_the_view_of_the_whole_log(split: int):
    view = VIEW.initial()
    for recorded in BUSY.log[:split]:
        view = VIEW.apply(view, recorded)
    view = decode(encode(view))
    for recorded in BUSY.log[split:]:
        view = VIEW.apply(view, recorded)
    assert view == BUSY.view


def test_a_view_is_restored_from_the_log_alone():
    assert restore(stored(BUSY)) == BUSY.view


def test_a_restored_view_is_at_the_end_of_the_log_whatever_happened_last():
    history = BUSY.when(chosen("c", "ash"))
    assert restore(stored(history)).seq == len(history.log)
    assert restore(stored(history)) == history.view


def test_a_view_is_restored_from_its_snapshot_and_the_tail():
    store = stored(BUSY)
    save(store, BUSY.view)
    more = BUSY.when(served("d", "ash"))
    for recorded in more.log[len(BUSY.log) :]:
        store.append(recorded.event, at=recorded.at)
    assert restore(store) == more.view
    assert RouteChosen not in store.yielded, "decisions change no view, so reading them is waste"
    assert len(store.yielded) == 4


@pytest.mark.parametrize(
    "state", [b"", b"\x93nonsense", encode(BUSY.view)[:-5], encode(BUSY.view).replace(b"ash", b"a\xff\xff")]
)
def test_a_snapshot_that_cannot_be_read_is_only_a_cache(state: bytes):
    store = stored(BUSY)
    store.save_snapshot(VIEW.name, VIEW.version, 7, state)
    assert restore(store) == BUSY.view


def test_a_snapshot_of_events_that_a_crash_took_away_is_not_used():
    store = stored(given(joined("ash")))
    save(store, BUSY.view)
    assert restore(store) == given(joined("ash")).view


def test_a_snapshot_is_due_after_ten_thousand_events_or_a_minute_with_any():
    snapshotter = Snapshotter(seq=100, at=START)
    assert not snapshotter.due(seq=100, at=START + 3_600_000_000_000)
    assert not snapshotter.due(seq=10_099, at=START + 59_999_999_999)
    assert snapshotter.due(seq=10_100, at=START)
    assert not snapshotter.due(seq=10_101, at=START + 59_999_999_999)
    assert snapshotter.due(seq=10_101, at=START + 60_000_000_000)


def test_requests_that_a_stopped_router_left_open_are_abandoned_oldest_first():
    history = BUSY.when(received("d"), chosen("d", "ash"), dispatched("d", "ash"), attempt_failed("d", "ash"))
    endings = abandoned(history.view)
    assert [(e.request, e.outcome, e.node, e.attempts) for e in endings] == [
        ("b", "abandoned", "ash", 1),
        ("c", "abandoned", "ash", 1),
        ("d", "abandoned", None, 1),
    ]
    after = history.when(*endings)
    assert not abandoned(after.view)
    assert after.fleet.nodes["ash"].depth == 0
    assert [row.status for row in after.traces[-3:]] == ["failed"] * 3
    assert all("router stopped" in (row.error_message or "") for row in after.traces[-3:])


def test_what_is_as_the_log_says_is_verified_and_counted():
    rows = [to_row(trace) for trace in BUSY.traces]
    early = given(*[recorded.event for recorded in BUSY.log[:5]]).view
    found = verify(BUSY.log, snapshot=(5, encode(early)), live=BUSY.view, traces=rows)
    assert found.ok
    assert (found.events, found.seq, found.rows, found.requests_open) == (len(BUSY.log), len(BUSY.log), 1, 2)
    assert (found.snapshot_seq, found.live_seq, found.traces_seq) == (5, len(BUSY.log), len(BUSY.log))


def test_a_log_with_a_hole_is_not_what_it_should_be():
    found = verify([recorded for recorded in BUSY.log if recorded.seq != 3])
    assert [(d.part, d.where, d.expected, d.found) for d in found.differences] == [("log", "after 2", "3", "4")]


def test_a_live_view_that_drifted_is_found_with_the_place_where_it_differs():
    drifted = BUSY.when(finished("b"))
    live = View(fleet=drifted.fleet, latency=BUSY.latency).at(len(BUSY.log))
    found = verify(BUSY.log, live=live)
    assert not found.ok
    assert {d.where for d in found.differences} == {
        "fleet.nodes.ash.depth",
        "fleet.nodes.ash.queues.llama3:latest.completed",
        "fleet.nodes.ash.queues.llama3:latest.waiting",
        "fleet.requests.b",
    }


def test_a_snapshot_that_is_wrong_or_no_view_is_found():
    wrong = BUSY.when(finished("b")).view.at(9)
    assert verify(BUSY.log, snapshot=(9, encode(wrong))).differences[0].part == "snapshot"
    assert verify(BUSY.log, snapshot=(9, b"nonsense")).differences[0].where == "at 9"
    assert verify(BUSY.log, snapshot=(99, encode(wrong.at(99)))).differences[0].expected == f"at most {len(BUSY.log)}"


def test_rows_that_are_missing_changed_or_too_many_are_found():
    history = given(*(served(f"r{n}", "ash", ms=n) for n in range(30)))
    rows = [to_row(trace) for trace in history.traces]
    (difference,) = verify(history.log, traces=rows[:-1]).differences
    assert (difference.where, difference.expected, difference.found) == ("request r29, completed", "a row", "no row")
    (difference,) = verify(history.log, traces=[*rows, rows[0]]).differences
    assert (difference.where, difference.expected, difference.found) == ("request r0, completed", "no row", "a row")
    changed = [(*rows[0][:3], "birch", *rows[0][4:]), *rows[1:]]
    (difference,) = verify(history.log, traces=changed).differences
    assert (difference.where, difference.found) == ("request r0, completed, node_id", "'birch'")
    found = verify(history.log, traces=[])
    assert (found.differences_found, len(found.differences)) == (30, DIFFERENCES_MAX)


def test_a_table_is_compared_at_the_position_that_it_has_reached():
    first, both = given(served("a", "ash")), given(served("a", "ash"), served("b", "ash"))
    rows = [to_row(trace) for trace in first.traces]
    assert verify(both.log, traces=rows, traces_seq=len(first.log)).ok
    assert not verify(both.log, traces=rows).ok
    assert not verify(first.log, traces=rows, traces_seq=99).ok


async def filled(path: Path) -> None:
    store = SQLiteStore.open(path, clock=ManualClock(START), writer="test", projections=[TraceTable(path)])
    for recorded in BUSY.log:
        store.append(recorded.event, at=recorded.at)
    save(store, BUSY.view)
    await store.close()


async def test_a_database_is_verified_without_a_router(tmp_path: Path):
    path = tmp_path / "latency.db"
    await filled(path)
    found = verify_file(path)
    assert found.ok, found
    assert (found.events, found.rows, found.requests_open) == (len(BUSY.log), 1, 2)
    assert (found.snapshot_seq, found.traces_seq) == (len(BUSY.log), len(BUSY.log))


async def test_a_database_whose_table_was_changed_is_found_out(tmp_path: Path):
    path = tmp_path / "latency.db"
    await filled(path)
    with closing(driver.connect(path)) as connection, connection:
        connection.execute("UPDATE request_traces SET status = 'failed'")
    assert [d.where for d in verify_file(path).differences] == ["request a, completed, status"]


async def test_a_database_in_a_directory_that_cannot_be_written_is_verified(public_path: Path):
    await filled(public_path)
    make_read_only(public_path.parent)
    with ordinary_user():
        assert verify_file(public_path).ok
        assert [trace.request_id for trace in TraceTable(public_path).recent()] == ["a"]


async def test_a_real_log_is_restored_after_a_stop_and_its_open_requests_end(tmp_path: Path):
    path = tmp_path / "latency.db"
    await filled(path)
    store = SQLiteStore.open(path, clock=ManualClock(START), writer="test", projections=[TraceTable(path)])
    view = restore(store)
    assert view == BUSY.view
    store.append_all(list[Any](abandoned(view)))
    await store.close()
    assert verify_file(path).ok
    assert [trace.status for trace in TraceTable(path).recent()] == ["failed", "failed", "completed"]


def test_a_database_that_is_not_there_cannot_be_verified(tmp_path: Path):
    with pytest.raises(StoreUnavailable):
        verify_file(tmp_path / "latency.db")


def test_an_ending_names_only_what_the_view_knows():
    (ending,) = abandoned(given(received("r")).view)
    assert ending == RequestFinished(
        request="r", outcome="abandoned", error="the router stopped before the request ended"
    )
