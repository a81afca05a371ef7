"""Verifying finds what differs, says it in words, and refuses what it cannot know."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from events.recorded import Recorded
from events.types import (
    Event,
    Memory,
    Model,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeStatusChanged,
    PolicyPromoted,
    RequestFinished,
    RequestReceived,
    RouteChosen,
)
from herd.core import Core
from herd.replay.verify import DIFFERENCES_MAX, Report, verify
from herd.routing import POLICIES
from projections.view import VIEW
from tests.sim.scenarios import CALM


def promoted(**changed: Any) -> PolicyPromoted:
    policy = POLICIES["classic"]({})
    whole = PolicyPromoted(policy=policy.name, policy_hash=policy.hash, parameters=policy.parameters)
    return msgspec.structs.replace(whole, **changed)


def a_log(first: Event | None = None) -> list[Recorded]:
    """Two equal nodes, one decision."""
    world = CALM.world(1)
    core: Core = world.core
    core.record(first or promoted())
    for node in ("ash", "birch"):
        core.record(NodeJoined(node=node, url=f"http://{node}"))
        core.record(NodeInventoryChanged(node=node, models=(Model(name="llama3", size_bytes=5 * 10**9),)))
        core.record(NodeReported(node=node, keyframe=True, memory=Memory(available_gib=40)))
        core.record(NodeStatusChanged(node=node, status="online"))
    core.record(NodeJoined(node="cedar", url="http://cedar"))
    received = RequestReceived(
        request="r1", kind="chat", dialect="ollama", path="/api/chat", model="llama3:latest", asked="llama3",
        streaming=True, tokens_estimated=30,
    )  # fmt: skip
    cause = core.record(received).id
    core.choose(received, cause=cause)
    core.record(RequestFinished(request="r1", outcome="completed", node="ash", model="llama3:latest"))
    return list(world.store.read())


def the_decision(log: list[Recorded]) -> tuple[int, RouteChosen]:
    return next((i, r.event) for i, r in enumerate(log) if isinstance(r.event, RouteChosen))


def altered(alter: Callable[[RouteChosen], dict[str, Any]]) -> Report:
    """Verify a log in which somebody changed the recorded decision."""
    log = a_log()
    place, chosen = the_decision(log)
    log[place] = msgspec.structs.replace(log[place], event=msgspec.structs.replace(chosen, **alter(chosen)))
    return verify(log, POLICIES)


def test_a_log_as_it_was_written_is_identical() -> None:
    log = a_log()
    report = verify(iter(log), POLICIES)
    assert report == Report(events=len(log), decisions=1, identical=1, differing=0)
    assert report.ok


def first_candidate(**changed: Any) -> Callable[[RouteChosen], dict[str, Any]]:
    def alter(chosen: RouteChosen) -> dict[str, Any]:
        first, *others = chosen.candidates
        return {"candidates": (msgspec.structs.replace(first, **changed), *others)}

    return alter


ALTERED: dict[str, tuple[Callable[[RouteChosen], dict[str, Any]], str]] = {
    "the winner": (lambda _: {"node": "cedar"}, "node was cedar, and is now "),
    "nobody": (lambda _: {"node": None}, "node was none, and is now "),
    "the score, by its last bit": (lambda c: {"score": c.score + 2**-46}, "score was "),
    "a signal": (lambda _: {"signals": ("one",)}, "signals was one, and is now thermal, memory_fit, "),
    "a point": (
        first_candidate(points=(10.0, 20.0, -0.0, 0.0, 8.0, 0.0, 0.0)),
        "points of queue_depth was -0.0, and is now 0.0",
    ),
    "a total": (first_candidate(total=1.0), "total was 1.0, and is now "),
    "an age": (first_candidate(reading_age_ms=7), "age of the reading (ms) was 7, and is now "),
    "the order": (lambda c: {"candidates": c.candidates[::-1]}, "the order of candidates was "),
    "a lost candidate": (lambda c: {"candidates": c.candidates[:1]}, "the order of candidates was "),
    "an elimination": (lambda _: {"eliminated": ()}, "cedar: elimination was none, and is now offline"),
    "the runner-up": (lambda _: {"runner_up": None}, "runner_up was none, and is now "),
    "the margin": (lambda _: {"margin": 3.0}, "margin was 3.0, and is now 0.0"),
    "the propensity": (lambda _: {"propensity": 1.0}, "propensity was 1.0, and is now 0.5"),
    "the model": (lambda _: {"model": "other:1b"}, "model was other:1b, and is now llama3:latest"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_any_altered_part_of_a_decision_is_found_and_said(what: str) -> None:
    alter, words = ALTERED[what]
    report = altered(alter)
    assert not report.ok
    assert (report.decisions, report.identical, report.differing) == (1, 0, 1)
    sentence = report.differences[0].sentence
    assert sentence.startswith("request r1, attempt 1 (position ")
    assert words in sentence


def test_the_seed_belongs_to_the_decision() -> None:
    _, chosen = the_decision(a_log())
    reports = [altered(lambda _, seed=seed: {"seed": seed}) for seed in range(8)]
    assert any(report.differing for report in reports)
    assert all(difference.recorded != difference.rederived for r in reports for difference in r.differences)
    assert chosen.propensity == 0.5


def test_a_report_shows_a_bounded_number_of_differences() -> None:
    log = CALM.world(3).run()
    for place, recorded in enumerate(log):
        if isinstance(recorded.event, RouteChosen):
            event = msgspec.structs.replace(recorded.event, score=-1.0)
            log[place] = msgspec.structs.replace(recorded, event=event)
    report = verify(log, POLICIES)
    assert report.differing == report.decisions == CALM.requests
    assert len(report.differences) == DIFFERENCES_MAX


UNKNOWN = {
    "never promoted": (NodeJoined(node="first", url="http://first"), "never promoted"),
    "removed": (promoted(policy="oracle"), "no policy 'oracle'"),
    "changed": (promoted(parameters={"score_model_hot": 51.0}), "classic has changed since"),
    "with parameters of another release": (promoted(parameters={"score_luck": 1.0}), "score_luck"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_policy_that_cannot_be_asked_again_is_named_and_nothing_is_claimed(case: str) -> None:
    first, words = UNKNOWN[case]
    report = verify(a_log(first), POLICIES)
    assert not report.ok
    assert (report.decisions, report.identical, report.differing) == (1, 0, 0)
    assert words in report.unknown_policies[promoted().policy_hash]


def test_a_policy_promoted_later_does_not_answer_for_earlier_decisions() -> None:
    log = a_log()
    view = VIEW.initial()
    for recorded in log:
        view = VIEW.apply(view, recorded)
    other = POLICIES["classic"]({"score_model_cold": 11.0})
    event = PolicyPromoted(policy=other.name, policy_hash=other.hash, parameters=other.parameters)
    report = verify([*log, msgspec.structs.replace(log[-1], seq=log[-1].seq + 1, event=event)], POLICIES)
    assert report.ok


def test_a_log_that_begins_in_the_middle_is_refused() -> None:
    report = verify(a_log()[2:], POLICIES)
    assert not report.ok
    assert "begins at position 3" in report.refused


def test_a_log_with_a_hole_is_refused_from_there_on() -> None:
    log = a_log()
    report = verify(log[:4] + log[5:], POLICIES)
    assert not report.ok
    assert (report.events, report.decisions) == (4, 0)
    assert "position 6 follows position 4" in report.refused


def test_a_decision_that_had_not_seen_everything_is_refused() -> None:
    report = altered(lambda chosen: {"seen": chosen.seen - 1})
    assert not report.ok
    assert report.identical == 0
    assert "more than one router" in report.refused


def test_a_decision_for_a_request_that_is_not_open_is_refused() -> None:
    report = altered(lambda _: {"request": "r2"})
    assert not report.ok
    assert "request r2, which is not open" in report.refused


def test_an_empty_log_has_nothing_to_answer_for() -> None:
    assert verify([], POLICIES) == Report(events=0, decisions=0, identical=0, differing=0)


def test_a_report_survives_being_written() -> None:
    report = altered(lambda _: {"node": "cedar"})
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
