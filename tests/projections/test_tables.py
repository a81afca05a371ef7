"""The table that users query by hand, in the database of a real log."""

import asyncio
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from events.clock import ManualClock
from events.sqlite import SQLiteStore, driver, writer
from events.sqlite.database import connect_writer, prepare
from events.store import StoreUnavailable
from projections import tables
from projections.runner import verify_file
from projections.tables import TraceTable, recent, stored, to_row
from projections.traces import FOLDED
from tests.given import (
    LLAMA,
    START,
    History,
    attempt_failed,
    chosen,
    dispatched,
    finished,
    given,
    joined,
    later,
    received,
    served,
)

#: As printed on the page that users were given.
FAILURES = (
    "SELECT request_id, model, status, error_message FROM request_traces"
    " WHERE status='failed' ORDER BY timestamp DESC LIMIT 10"
)
SLOWEST = (
    "SELECT model, node_id, latency_ms/1000.0 as secs FROM request_traces"
    " WHERE status='completed' ORDER BY latency_ms DESC LIMIT 10"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "latency.db"


def opened(path: Path, **options: Any) -> SQLiteStore:
    return SQLiteStore.open(path, clock=ManualClock(START), writer="test", projections=[TraceTable(path)], **options)


async def store_all(path: Path, history: History, *, after: int = 0) -> None:
    store = opened(path)
    for recorded in history.log[after:]:
        store.append(recorded.event, at=recorded.at)
    await store.close()


def rows(path: Path) -> list[tables.Row]:
    with closing(driver.connect(path)) as connection:
        return list(stored(connection))


def asked(path: Path, sql: str) -> list[str]:
    """Return what the command `sqlite3` prints, or would print: not every machine has it, and each has Python's own."""
    with closing(sqlite3.connect(path)) as connection:
        told = ["|".join("" if value is None else str(value) for value in row) for row in connection.execute(sql)]
    if shutil.which("sqlite3"):
        printed = subprocess.run(["sqlite3", path, sql], capture_output=True, text=True, check=True).stdout
        assert printed.splitlines() == told
    return told


async def test_the_published_query_for_failures_works_as_printed(path: Path):
    history = given(
        served("good", "ash"),
        received("dead"),
        chosen("dead", "ash"),
        dispatched("dead", "ash"),
        later(ms=1),
        finished("dead", "failed", node="ash", error="connection reset"),
        received("nobody", "qwen3:8b"),
        chosen("nobody", None),
        later(ms=1),
        finished("nobody", "rejected", status=404, error="model not found"),
    )
    await store_all(path, history)
    assert asked(path, FAILURES) == [
        "nobody|qwen3:8b|failed|model not found",
        "dead|llama3:latest|failed|connection reset",
    ]


async def test_the_published_query_for_slow_requests_works_as_printed(path: Path):
    history = given(served("a", "ash", ms=500), served("b", "birch", ms=2500), received("c"), finished("c", "failed"))
    await store_all(path, history)
    assert asked(path, SLOWEST) == ["llama3:latest|birch|2.5", "llama3:latest|ash|0.5"]


async def test_columns_and_indexes_are_those_that_users_know(path: Path):
    await store_all(path, given())
    columns = asked(path, "SELECT name || ' ' || type || ' ' || \"notnull\" FROM pragma_table_info('request_traces')")
    assert columns == [
        "id INTEGER 1",
        "request_id TEXT 1",
        "model TEXT 1",
        "original_model TEXT 1",
        "node_id TEXT 1",
        "score REAL 0",
        "scores_breakdown TEXT 0",
        "status TEXT 1",
        "latency_ms REAL 0",
        "time_to_first_token_ms REAL 0",
        "prompt_tokens INTEGER 0",
        "completion_tokens INTEGER 0",
        "retry_count INTEGER 0",
        "fallback_used INTEGER 0",
        "excluded_nodes TEXT 0",
        "client_ip TEXT 0",
        "original_format TEXT 0",
        "error_message TEXT 0",
        "timestamp REAL 1",
        "tags TEXT 0",
        "finish_reason TEXT 0",
        "estimated_tokens INTEGER 0",
    ]
    indexes = asked(
        path,
        "SELECT l.name, group_concat(i.name) FROM pragma_index_list('request_traces') l"
        " JOIN pragma_index_info(l.name) i GROUP BY l.name ORDER BY l.name",
    )
    assert indexes == [
        "idx_traces_model_timestamp|model,timestamp",
        "idx_traces_node_model|node_id,model",
        "idx_traces_request_id|request_id",
        "idx_traces_tags|tags",
        "idx_traces_timestamp|timestamp",
    ]


async def test_lists_are_json_or_null(path: Path):
    tagged = received("r", tags=("work", "user:al"))
    history = given(tagged, chosen("r", "ash", score=1.5, signals=("thermal",)), dispatched("r", "ash"), finished("r"))
    await store_all(path, history)
    query = "SELECT scores_breakdown, tags, excluded_nodes IS NULL, fallback_used FROM request_traces"
    assert asked(path, query) == ['{"total":1.5}|["work","user:al"]|1|0']


async def test_each_stored_row_is_the_one_that_the_fold_makes(path: Path):
    history = given(*(served(f"r{n}", "ash", ms=n) for n in range(100)))
    await store_all(path, history)
    assert rows(path) == [to_row(trace) for trace in history.traces]


async def test_a_request_that_is_open_while_the_router_stops_has_one_row_with_everything_in_the_end(path: Path):
    history = given(
        received("r", client="10.0.0.7"),
        chosen("r", "ash", score=12.0),
        served("meanwhile", "birch", ms=5),
        dispatched("r", "ash"),
        later(ms=80),
    )
    await store_all(path, history)
    assert len(rows(path)) == 1
    await store_all(path, history.when(finished("r", "abandoned")), after=len(history.log))
    with closing(driver.connect(path)) as connection:
        newest, oldest = recent(connection)  # and not a third one: what was written before is not written again
    assert (newest.request_id, newest.status, newest.client_ip) == ("r", "failed", "10.0.0.7")
    assert (newest.score, newest.latency_ms) == (12.0, None)  # nobody knows when it ended
    assert oldest.request_id == "meanwhile"


async def test_a_log_that_grew_without_the_table_is_caught_up_at_the_next_start(path: Path):
    first, second = given(served("a", "ash")), given(served("a", "ash"), served("b", "ash"))
    await store_all(path, first)
    store = SQLiteStore.open(path, clock=ManualClock(START), writer="test")
    for recorded in second.log[len(first.log) :]:
        store.append(recorded.event, at=recorded.at)
    await store.close()
    assert len(rows(path)) == 1
    await store_all(path, given())
    assert rows(path) == [to_row(trace) for trace in second.traces]


async def test_a_new_version_rebuilds_the_table_from_the_log(path: Path, monkeypatch: pytest.MonkeyPatch):
    history = given(*(served(f"r{n}", "ash") for n in range(40)))
    await store_all(path, history)
    with closing(driver.connect(path)) as connection, connection:
        connection.execute("UPDATE request_traces SET latency_ms = 0 WHERE id % 2")
        connection.execute("DELETE FROM request_traces WHERE id > 30")
    await store_all(path, given())
    assert rows(path) != [to_row(trace) for trace in history.traces]
    monkeypatch.setattr(tables, "VERSION", tables.VERSION + 1)
    await store_all(path, given())
    assert rows(path) == [to_row(trace) for trace in history.traces]


async def test_rows_that_a_crash_kept_from_the_table_come_at_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "VIEWS_S", 60.0)
    history = given(served("a", "ash"), received("b"))
    copy = path.with_name("copy.db")
    store = opened(path)
    for recorded in history.log:
        store.append(recorded.event, at=recorded.at)
    async with asyncio.timeout(5):
        while store.state.queued:  # noqa: ASYNC110 - awaiting it would write the rows
            await asyncio.sleep(0.001)
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")  # what a kill would leave now
    await store.close()
    assert rows(copy) == []
    assert verify_file(copy).ok
    again = opened(copy)
    await again.close()
    assert rows(copy) == rows(path) == [to_row(trace) for trace in history.traces]
    assert verify_file(copy).ok


async def test_events_that_make_no_rows_are_not_decoded_to_catch_up(path: Path):
    history = given(joined("ash"), served("a", "ash"))
    await store_all(path, history)
    with closing(driver.connect(path)) as connection, connection:
        connection.execute("DELETE FROM checkpoints")
        connection.execute("INSERT INTO event_types VALUES (99, 'comet.seen', '9.0.0')")
        connection.execute("UPDATE events SET type = 99, payload = x'00' WHERE position = 1")
    assert not isinstance(history.log[0].event, FOLDED)
    await opened(path).close()
    assert rows(path) == [to_row(trace) for trace in history.traces]


async def test_an_event_of_a_later_release_sets_the_table_aside_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
):
    history = given(served("a", "ash"))
    await store_all(path, history)
    with closing(driver.connect(path)) as connection, connection:
        connection.execute("DELETE FROM checkpoints")
        connection.execute("UPDATE events SET schema = 9 WHERE stream = 'request/a'")
    store = opened(path)
    assert "request_traces' is set aside" in store.state.failure
    assert "a later release of Herd wrote it" in store.state.failure
    assert "Traceback" not in caplog.text
    await store.close()


@pytest.mark.parametrize("content", [None, b"x" * 9000])
def test_a_table_that_cannot_be_read_says_so(path: Path, content: bytes | None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="request_traces cannot be read"):
        TraceTable(path).recent()


def test_rows_whose_transaction_failed_or_seemed_to_are_written_once(path: Path):
    prepare(path, None)
    history = given(served("a", "ash"), served("b", "ash"))
    log = history.log
    with closing(connect_writer(path, "full")) as connection:
        cursor = connection.cursor()
        table = TraceTable(path)
        cursor.execute("BEGIN")
        table.start(cursor, 0, lambda after, types=None: iter(()))
        cursor.execute("COMMIT")
        for batch in (log[:6], log[6:]):
            table.follow(batch)
            for ending in ("ROLLBACK", "COMMIT", "COMMIT"):  # the last as if the one before had seemed to fail
                cursor.execute("BEGIN")
                table.write(cursor)
                cursor.execute(ending)
            table.written()
        assert list(stored(connection)) == [to_row(trace) for trace in history.traces]
        assert tables.reached(connection) == len(log)


VARIED = given(
    served("a", "ash", ms=1000),
    served("b", "birch", "qwen3:8b", ms=1000),
    received("c", tags=("nightly",)),
    later(s=1),
    finished("c", "failed", error="no node"),
    received("d"),
    chosen("d", "ash"),
    dispatched("d", "ash"),
    attempt_failed("d", "ash"),
    chosen("d", "birch", attempt=2),
    dispatched("d", "birch", attempt=2),
    later(s=1),
    finished("d"),
)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["d", "d", "c", "b", "a"]),
        ({"limit": 2}, ["d", "d"]),
        ({"limit": 0}, ["d"]),
        ({"limit": 10**9}, ["d", "d", "c", "b", "a"]),
        ({"status": "failed"}, ["c"]),
        ({"status": "retried"}, ["d"]),
        ({"node": "birch"}, ["d", "b"]),
        ({"model": LLAMA, "node": "ash"}, ["d", "a"]),
        ({"request": "d"}, ["d", "d"]),
        ({"tag": "nightly"}, ["c"]),
        ({"since_s": START / 1e9 + 3}, ["d", "d", "c"]),
        ({"before_s": START / 1e9 + 2}, ["a"]),
        ({"status": None, "node": None}, ["d", "d", "c", "b", "a"]),
    ],
)
async def test_recent_requests_can_be_filtered(path: Path, filters: dict[str, Any], found: list[str]):
    # The first attempt of d ended when c did: of two rows of one moment, the one written last is the newer.
    await store_all(path, VARIED)
    newest = TraceTable(path).recent(**filters)
    assert [trace.request_id for trace in newest] == found


async def test_what_was_stored_is_read_back(path: Path):
    await store_all(path, VARIED)
    (trace,) = TraceTable(path).recent(tag="nightly")
    assert (trace.tags, trace.excluded_nodes, trace.scores_breakdown, trace.fallback_used) == (
        ("nightly",),
        (),
        {},
        False,
    )
    assert trace.timestamp == START / 1e9 + 3
