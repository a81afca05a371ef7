"""What a waiting request can expect."""

import random
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from events.types import Outcome
from projections.latency import OBSERVATIONS_MAX
from tests.given import LLAMA, attempt_failed, dispatched, enqueued, finished, given, later, received, served


def test_nothing_is_known_of_a_pair_before_its_first_completed_request():
    latency = given(received("r"), dispatched("r", "ash")).latency
    assert latency.service_p75_ms("ash", LLAMA) is None
    assert latency.stats("ash", LLAMA) is None


def test_service_time_counts_from_dispatch_and_not_from_arrival():
    history = given(
        received("r"), enqueued("r", "ash"), later(s=60), dispatched("r", "ash"), later(ms=250), finished("r")
    )
    assert history.latency.service_p75_ms("ash", LLAMA) == 250.0


def test_one_observation_is_enough_for_a_percentile():
    assert given(served("r", "ash", ms=40)).latency.service_p75_ms("ash", LLAMA) == 40.0


@pytest.mark.parametrize(("count", "expected"), [(1, 10.0), (2, 20.0), (3, 30.0), (4, 40.0), (8, 70.0), (9, 70.0)])
def test_the_percentile_is_the_observation_at_three_quarters(count: int, expected: float):
    requests = [served(f"r{n}", "ash", ms=10.0 * n) for n in range(count, 0, -1)]
    assert given(*requests).latency.service_p75_ms("ash", LLAMA) == expected


def test_a_cold_load_is_kept_apart_from_the_service_time():
    stats = given(served("r", "ash", ms=9000, first_ms=8200, load_ms=8000)).latency.stats("ash", LLAMA)
    assert stats is not None
    assert stats.service_p75_ms == 1000.0
    assert stats.load_mean_ms == 8000.0
    assert stats.first_token_mean_ms == 200.0
    assert stats.latency_mean_ms == 9000.0


def test_the_milliseconds_that_an_engine_reports_for_a_loaded_model_are_no_load():
    stats = given(served("r", "ash", ms=1000, load_ms=20)).latency.stats("ash", LLAMA)
    assert stats is not None
    assert stats.load_mean_ms is None
    assert stats.service_p75_ms == 980.0


def test_a_load_longer_than_the_request_leaves_no_negative_time():
    assert given(served("r", "ash", ms=100, load_ms=5000)).latency.service_p75_ms("ash", LLAMA) == 0.0


@pytest.mark.parametrize(
    "outcome", ["failed", "incomplete", "no_output", "cancelled", "expired", "rejected", "abandoned"]
)
def test_only_completed_requests_count(outcome: Outcome):
    latency = given(received("r"), dispatched("r", "ash"), later(ms=5), finished("r", outcome)).latency
    assert latency.stats("ash", LLAMA) is None
    assert not latency.running


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_loading_and_unloading_answer_nothing_and_teach_nothing(reason: str):
    latency = given(
        received("r"),
        dispatched("r", "ash"),
        later(ms=5),
        finished("r", finish_reason=reason),
        served("s", "ash", ms=40),
    ).latency
    stats = latency.stats("ash", LLAMA)
    assert stats is not None
    assert (stats.samples, stats.service_p75_ms) == (1, 40.0)
    assert not latency.running


def test_a_retried_request_counts_for_the_node_that_served_it_from_its_dispatch_there():
    history = given(
        received("r"),
        dispatched("r", "ash"),
        later(s=10),
        attempt_failed("r", "ash"),
        dispatched("r", "birch", attempt=2),
        later(ms=300),
        finished("r"),
    )
    assert history.latency.stats("ash", LLAMA) is None
    assert history.latency.service_p75_ms("birch", LLAMA) == 300.0


def test_a_request_that_was_never_dispatched_teaches_nothing():
    assert not given(received("r"), enqueued("r", "ash"), finished("r")).latency.nodes


def test_observations_of_last_week_are_forgotten_once_there_is_a_newer_one():
    old = given(*(served(f"old{n}", "ash", ms=5000) for n in range(3)))
    assert old.when(later(days=6), served("new", "ash", ms=100)).latency.service_p75_ms("ash", LLAMA) == 5000.0
    assert old.when(later(days=8), served("new", "ash", ms=100)).latency.service_p75_ms("ash", LLAMA) == 100.0


def test_a_pair_that_nobody_asks_for_keeps_what_was_last_known_of_it():
    history = given(served("r", "ash", ms=5000), later(days=30), served("other", "birch", ms=1))
    assert history.latency.service_p75_ms("ash", LLAMA) == 5000.0


def test_only_the_newest_five_hundred_observations_count():
    slow = [served(f"slow{n}", "ash", ms=9000) for n in range(OBSERVATIONS_MAX)]
    fast = [served(f"fast{n}", "ash", ms=10) for n in range(OBSERVATIONS_MAX)]
    history = given(*slow, *fast[:-1])
    assert history.latency.service_p75_ms("ash", LLAMA) == 10.0
    stats = history.when(fast[-1]).latency.stats("ash", LLAMA)
    assert stats is not None
    assert stats.samples == 2 * OBSERVATIONS_MAX
    assert len(stats.sorted_us) == 4 * OBSERVATIONS_MAX
    assert max(memoryview(stats.sorted_us).cast("I")) == 10_000


@drawn(st.lists(st.tuples(st.integers(0, 3 * 24 * 3600), st.integers(0, 10_000)), min_size=1, max_size=30))
def test_the_window_is_that_of_a_naive_list(steps: list[tuple[int, int]]):
    history, now, seen = given(), 0, list[tuple[int, int]]()
    for n, (pause_s, ms) in enumerate(steps):
        history = history.when(
            later(s=pause_s), received(f"r{n}"), dispatched(f"r{n}", "ash"), later(ms=ms), finished(f"r{n}")
        )
        now += pause_s * 1000 + ms
        seen.append((now, ms))
    recent = sorted(ms for at, ms in seen if at // 1000 >= now // 1000 - 7 * 24 * 3600)
    assert history.latency.service_p75_ms("ash", LLAMA) == recent[min(int(len(recent) * 0.75), len(recent) - 1)]


def test_means_are_those_of_all_requests_that_told_the_figure():
    stats = given(
        served("a", "ash", ms=100, prompt_tokens=10, completion_tokens=50),
        served("b", "ash", ms=100),
        served("c", "ash", ms=100, prompt_tokens=30, completion_tokens=150),
    ).latency.stats("ash", LLAMA)
    assert stats is not None
    assert stats.samples == 3
    assert stats.prompt_tokens_mean == pytest.approx(20, rel=0.01)
    assert stats.completion_tokens_mean == pytest.approx(100, rel=0.01)


def test_speeds_are_tokens_by_the_time_that_the_engine_spent_on_them():
    facts: dict[str, Any] = {"prompt_tokens": 1000, "prompt_ms": 500, "completion_tokens": 100, "generate_ms": 4000}
    stats = given(
        served("a", "ash", **facts), served("b", "ash", **dict(facts, generate_ms=1000)), served("c", "ash")
    ).latency.stats("ash", LLAMA)
    assert stats is not None
    assert stats.prompt_tokens_per_s == pytest.approx(2000)
    assert stats.generate_tokens_per_s == pytest.approx(40, rel=0.01)  # 200 tokens in 5 s, not the mean of 25 and 100


def test_an_engine_that_reports_no_durations_has_no_speed():
    stats = given(served("a", "ash", prompt_tokens=10, completion_tokens=5)).latency.stats("ash", LLAMA)
    assert stats is not None
    assert stats.prompt_tokens_per_s is None
    assert stats.generate_tokens_per_s is None


def test_means_follow_a_machine_that_became_slower():
    fast = [served(f"f{n}", "ash", ms=100) for n in range(1000)]
    slow = [served(f"s{n}", "ash", ms=1000) for n in range(1000)]
    stats = given(*fast, *slow).latency.stats("ash", LLAMA)
    assert stats is not None
    assert stats.latency_mean_ms is not None
    assert stats.latency_mean_ms > 850


def test_models_and_nodes_are_kept_apart():
    requests = [served(f"{n}{m}", n, m, ms=ms) for n, m, ms in (("a", "x:1", 1), ("a", "y:1", 2), ("b", "x:1", 3))]
    random.Random(7).shuffle(requests)
    latency = given(*requests).latency
    assert [latency.service_p75_ms(n, m) for n, m in (("a", "x:1"), ("a", "y:1"), ("b", "x:1"))] == [1.0, 2.0, 3.0]
