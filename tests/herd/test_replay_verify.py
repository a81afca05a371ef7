"""Verifying finds what differs, says it in words, and refuses what it cannot know."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.clock import ManualClock
from events.recorded import Recorded
from events.seams import SEAMS_MAX, Seam, Seams
from events.sqlite import SQLiteStore, open_readonly
from events.store import StoreUnavailable
from events.types import (
    Event,
    LogInterrupted,
    Memory,
    Model,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeStatusChanged,
    PolicyPromoted,
    RequestDispatched,
    RequestFinished,
    RequestReceived,
    RouteChosen,
    RouterRecovered,
    RouterStarted,
)
from herd.core import Core
from herd.replay.verify import DIFFERENCES_MAX, Report, verify
from herd.routing import POLICIES
from projections import runner
from projections.tables import TraceTable
from projections.view import VIEW, encode
from tests.events.test_sqlite_disk import Disk, recovered
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


def test_a_reworded_sentence_does_not_make_a_decision_look_different() -> None:
    def reword(chosen: RouteChosen) -> dict[str, Any]:
        assert chosen.eliminated
        return {"eliminated": tuple(msgspec.structs.replace(e, detail="in other words") for e in chosen.eliminated)}

    report = altered(reword)
    assert report.ok
    assert (report.identical, report.differing) == (1, 0)


# --- lost events ----------------------------------------------------------------------------------------------------


class Routed:
    """A router's core on a disk that can be told to fail."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        self.disk = Disk()
        self.clock = clock
        self.store = SQLiteStore.open(
            path, clock=clock, writer="test", queue_max=30, connect=self.disk.connect, projections=[TraceTable(path)]
        )
        self.core = Core(self.store, clock, POLICIES["classic"]({}), runner.restore(self.store), seed=7)
        for ending in runner.abandoned(self.core.view):
            self.core.record(ending)
        self.core.record(promoted())
        self.core.record(RouterStarted(version="1"))

    def join(self) -> None:
        self.core.record(NodeJoined(node="ash", url="http://ash"))
        self.core.record(NodeInventoryChanged(node="ash", models=(Model(name="llama3", size_bytes=5 * 10**9),)))
        self.core.record(NodeReported(node="ash", keyframe=True, memory=Memory(available_gib=40)))
        self.core.record(NodeStatusChanged(node="ash", status="online"))

    def begin(self, name: str) -> None:
        self.clock.advance(s=1)
        asked = RequestReceived(
            request=name, kind="chat", dialect="ollama", path="/api/chat", model="llama3:latest", asked="llama3",
            streaming=True, tokens_estimated=30,
        )  # fmt: skip
        _, chosen = self.core.choose(asked, cause=self.core.record(asked).id)
        assert chosen.node == "ash"
        self.core.record(RequestDispatched(request=name, attempt=1, node="ash", model="llama3:latest"))

    def end(self, name: str) -> Recorded:
        self.clock.advance(s=1)
        return self.core.record(RequestFinished(request=name, outcome="completed", node="ash", model="llama3:latest"))

    async def stop(self) -> None:
        runner.save(self.store, self.core.view)
        await self.store.close()


async def with_a_loss(path: Path, clock: ManualClock) -> tuple[Routed, int]:
    """Run a router that loses the end of a request and goes on; return it, and the position of the seam."""
    router = Routed(path, clock)
    router.join()
    router.begin("r1")
    router.end("r1")
    runner.save(router.store, router.core.view)
    router.begin("r2")
    await router.store.flushed(router.core.view.seq)
    router.disk.fails_at = "INSERT"
    with pytest.raises(StoreUnavailable):
        await router.store.flushed(router.core.record(RouterRecovered(abandoned=0)).seq)
    while router.store.state.queued < 30:
        router.core.record(RouterRecovered(abandoned=0))
    assert not router.store.state.lost
    seam = router.end("r2").seq
    assert router.store.state.lost == 1
    await recovered(router.store, router.disk)
    router.begin("r3")
    router.end("r3")
    return router, seam


def asked_again(path: Path) -> Report:
    with closing(open_readonly(path)) as reader:
        return verify(reader.read(), POLICIES)


async def test_a_loss_is_a_seam_that_ends_with_the_run_of_the_router(tmp_path: Path) -> None:
    path, clock = tmp_path / "latency.db", ManualClock()
    router, seam = await with_a_loss(path, clock)
    await router.stop()

    report = asked_again(path)
    assert report.ok, report
    assert (report.decisions, report.identical, report.not_checkable, report.lost) == (3, 2, 1, 1)
    assert f"1 event was lost at position {seam}, between 2026-01-01 00:00:" in report.seams[0].sentence
    kept = runner.verify_file(path)
    assert kept.ok, kept
    assert kept.snapshot_seq is None or kept.snapshot_seq < seam, "what only the router knew must not be kept"
    assert kept.seams == report.seams

    again = Routed(path, clock)
    assert not again.core.view.fleet.requests
    again.begin("r4")
    again.end("r4")
    await again.stop()
    report = asked_again(path)
    assert report.ok, report
    assert (report.decisions, report.identical, report.not_checkable) == (4, 3, 1)
    kept = runner.verify_file(path)
    assert kept.ok, kept
    assert kept.snapshot_seq == kept.seq
    assert not kept.not_comparable
    ended = {trace.request_id: trace.error_message for trace in TraceTable(path).recent()}
    assert ended["r2"] == "the router stopped before the request ended"
    assert ended["r4"] is None


async def test_a_snapshot_from_after_a_loss_is_neither_used_nor_compared(tmp_path: Path) -> None:
    path, clock = tmp_path / "latency.db", ManualClock()
    router, seam = await with_a_loss(path, clock)
    view = router.core.view
    router.store.save_snapshot(VIEW.name, VIEW.version, view.seq, encode(view))
    await router.store.close()

    kept = runner.verify_file(path)
    assert kept.ok, kept
    (sentence,) = kept.not_comparable
    assert (
        f"the snapshot view at position {view.seq} is not comparable: 1 event was lost at position {seam}" in sentence
    )
    store = SQLiteStore.open(path, clock=clock, writer="test")
    assert set(runner.restore(store).fleet.requests) == {"r2"}
    await store.close()


def test_many_seams_are_counted_and_the_first_of_them_told() -> None:
    seams = Seams()
    log = a_log()
    for seq in range(1, SEAMS_MAX + 6):
        lost = LogInterrupted(lost=2, since=0, until=1)
        seams.follow(msgspec.structs.replace(log[0], seq=seq, event=lost))
    assert (len(seams.first), seams.lost) == (SEAMS_MAX, 2 * SEAMS_MAX + 10)
    assert seams.open == Seam(seq=1, lost=2, since=0, until=1)


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
