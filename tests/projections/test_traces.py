"""One row for each attempt, in the words that users already query."""

from typing import Any

import msgspec
import pytest

from events.types import Candidate, Outcome
from projections.traces import Trace, Traces, fold
from tests.given import (
    LLAMA,
    START,
    attempt_failed,
    chosen,
    dispatched,
    enqueued,
    finished,
    first_token,
    given,
    later,
    received,
    served,
)


def test_a_completed_request_is_one_row_with_everything_that_is_known():
    candidates = (
        Candidate(node="ash", total=70.5, points=(50.0, 20.5), reading_age_ms=5),
        Candidate(node="birch", total=10.0, points=(10.0, 0.0), reading_age_ms=7),
    )
    facts: dict[str, Any] = {"client": "192.168.1.7", "tags": ("work", "user:al"), "tokens_estimated": 120}
    history = given(
        received("r", **facts),
        chosen("r", "ash", score=70.5, signals=("thermal", "memory_fit"), candidates=candidates),
        enqueued("r", "ash"),
        later(s=3),
        dispatched("r", "ash"),
        later(ms=150),
        first_token("r", "ash"),
        later(ms=850),
        finished("r", node="ash", model=LLAMA, prompt_tokens=110, completion_tokens=200, finish_reason="stop"),
    )
    assert history.traces == [
        Trace(
            request_id="r",
            model=LLAMA,
            original_model=LLAMA,
            node_id="ash",
            score=70.5,
            scores_breakdown={"thermal": 50.0, "memory_fit": 20.5, "total": 70.5},
            status="completed",
            latency_ms=1000.0,
            time_to_first_token_ms=150.0,
            prompt_tokens=110,
            completion_tokens=200,
            retry_count=0,
            fallback_used=False,
            excluded_nodes=(),
            client_ip="192.168.1.7",
            original_format="ollama",
            error_message=None,
            timestamp=START / 1e9 + 4,
            tags=("work", "user:al"),
            finish_reason="stop",
            estimated_tokens=120,
        )
    ]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("completed", "completed"),
        ("failed", "failed"),
        ("incomplete", "incomplete"),
        ("no_output", "no_output"),
        ("cancelled", "client_disconnected"),
        ("expired", "failed"),
        ("rejected", "failed"),
        ("abandoned", "failed"),
    ],
)
def test_every_outcome_has_its_status_and_every_failure_says_why(outcome: Outcome, status: str):
    (row,) = given(received("r"), chosen("r", "ash"), dispatched("r", "ash"), finished("r", outcome)).traces
    assert row.status == status
    assert bool(row.error_message) == (status not in ("completed", "no_output"))


def test_an_abandoned_request_says_that_the_router_stopped():
    (row,) = given(received("r"), chosen("r", "ash"), dispatched("r", "ash"), finished("r", "abandoned")).traces
    assert row.error_message == "the router stopped before the request ended"


def test_a_request_that_no_node_can_serve_is_a_failed_row_without_a_node():
    (row,) = given(
        received("r"), chosen("r", None), finished("r", "rejected", status=404, error="model 'x' not found")
    ).traces
    assert (row.status, row.node_id, row.error_message) == ("failed", "", "model 'x' not found")
    assert (row.score, row.scores_breakdown, row.latency_ms) == (None, {}, None)


def test_a_failed_attempt_that_is_tried_elsewhere_is_a_retried_row_of_its_own():
    retried, completed = given(
        received("r"),
        chosen("r", "ash", score=50.0),
        dispatched("r", "ash"),
        later(ms=20),
        attempt_failed("r", "ash", message="connection refused"),
        later(ms=5),
        chosen("r", "birch", attempt=2, score=40.0, excluded=("ash",)),
        dispatched("r", "birch", attempt=2),
        later(ms=100),
        finished("r", node="birch", model=LLAMA),
    ).traces
    assert (retried.status, retried.node_id, retried.score) == ("retried", "ash", 50.0)
    assert (retried.latency_ms, retried.error_message) == (20.0, "connection refused")
    assert retried.timestamp == pytest.approx(START / 1e9 + 0.02)
    assert (completed.status, completed.node_id, completed.score) == ("completed", "birch", 40.0)
    assert (completed.latency_ms, completed.excluded_nodes) == (100.0, ("ash",))


def test_retries_are_counted_once():
    rows = given(
        received("r"),
        *(
            (chosen("r", f"n{n}", attempt=n), dispatched("r", f"n{n}", attempt=n), attempt_failed("r", f"n{n}"))
            for n in (1, 2)
        ),
        chosen("r", "n3", attempt=3),
        dispatched("r", "n3", attempt=3),
        finished("r"),
    ).traces
    assert [row.status for row in rows] == ["retried", "retried", "completed"]
    assert sum(row.retry_count for row in rows) == 2
    assert rows[-1].retry_count == 2


def test_attempts_that_run_out_leave_the_last_failure_as_the_one_failed_row():
    rows = given(
        received("r"),
        chosen("r", "ash"),
        dispatched("r", "ash"),
        attempt_failed("r", "ash", cause="connect"),
        chosen("r", "birch", attempt=2, excluded=("ash",)),
        dispatched("r", "birch", attempt=2),
        later(ms=7),
        attempt_failed("r", "birch", cause="status", status=500),
        chosen("r", None, attempt=3, excluded=("ash", "birch")),
        finished("r", "failed", attempts=2),
    ).traces
    assert [(row.status, row.node_id, row.error_message) for row in rows] == [
        ("retried", "ash", "connect"),
        ("failed", "birch", "status (HTTP 500)"),
    ]
    assert rows[-1].excluded_nodes == ("ash", "birch")
    assert rows[-1].latency_ms == 7.0


def test_another_model_than_the_one_asked_for_is_a_fallback():
    (row,) = given(
        received("r", "llama3:70b"), chosen("r", "ash", "llama3:8b"), dispatched("r", "ash", "llama3:8b"), finished("r")
    ).traces
    assert (row.model, row.original_model, row.fallback_used) == ("llama3:8b", "llama3:70b", True)


def test_a_client_that_leaves_the_line_leaves_a_row_without_a_latency():
    (row,) = given(
        received("r"), chosen("r", "ash"), enqueued("r", "ash"), later(s=1), finished("r", "cancelled")
    ).traces
    assert (row.status, row.node_id, row.latency_ms) == ("client_disconnected", "ash", None)


def test_a_second_ending_and_an_ending_without_a_beginning_leave_no_row():
    assert len(given(served("r", "ash"), finished("r", "failed")).traces) == 1
    assert given(first_token("r", "ash"), finished("r")).traces == []


def test_the_state_forgets_what_has_ended_and_knows_where_the_oldest_open_request_began():
    state = Traces()
    assert state.low == 1
    lows = list[int]()
    for recorded in given(received("a"), received("b"), finished("a"), finished("b")).log:
        state, _ = fold(state, recorded)
        lows.append(state.low)
    assert lows == [1, 1, 2, 5]
    assert not state.open


def test_a_row_is_an_entry_of_the_api_as_it_is():
    (row,) = given(served("r", "ash")).traces
    assert " ".join(msgspec.json.decode(msgspec.json.encode(row))) == (
        "request_id model original_model node_id score scores_breakdown status latency_ms time_to_first_token_ms "
        "prompt_tokens completion_tokens retry_count fallback_used excluded_nodes client_ip original_format "
        "error_message timestamp tags finish_reason estimated_tokens"
    )
