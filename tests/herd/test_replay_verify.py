"""Verifying finds what differs, says it in words, and refuses what it cannot know."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

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
from herd.app import _keep_snapshots  # pyright: ignore[reportPrivateUsage]  # a task of the router
from herd.cli.herd import main
from herd.core import Core
from herd.replay.verify import DIFFERENCES_MAX, Report, verify
from herd.routing import POLICIES
from projections import runner
from projections.tables import TraceTable
from projections.view import VIEW, View, encode
from tests.events.test_sqlite_disk import Disk, recovered
from tests.sim.scenarios import CALM


def promoted(**changed: Any) -> PolicyPromoted:
    policy = POLICIES["classic"]({})
    whole = PolicyPromoted(policy=policy.name, policy_hash=policy.hash, parameters=policy.parameters)
    return msgspec.structs.replace(whole, **changed)


def request(name: str) -> RequestReceived:
    return RequestReceived(
        request=name, kind="chat", dialect="ollama", path="/api/chat", model="llama3:latest", asked="llama3",
        streaming=True, tokens_estimated=30,
    )  # fmt: skip


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
    received = request("r1")
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
        asked = request(name)
        _, chosen = self.core.choose(asked, cause=self.core.record(asked).id)
        assert chosen.node == "ash"
        self.core.record(RequestDispatched(request=name, attempt=1, node="ash", model="llama3:latest"))

    def end(self, name: str) -> Recorded:
        self.clock.advance(s=1)
        return self.core.record(RequestFinished(request=name, outcome="completed", node="ash", model="llama3:latest"))

    async def lose(self) -> RequestReceived:
        """Lose a request that has just arrived."""
        self.disk.fails_at = "INSERT"
        with pytest.raises(StoreUnavailable):
            await self.store.flushed(self.core.record(RouterRecovered(abandoned=0)).seq)
        while self.store.state.queued < 30:
            self.core.record(RouterRecovered(abandoned=0))
        asked, lost = request("lost"), self.store.state.lost
        self.core.record(asked)
        assert self.store.state.lost == lost + 1
        await recovered(self.store, self.disk)
        return asked

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
        return verify(reader.read(), POLICIES, runner.after_losses(reader))


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


async def test_decisions_after_a_loss_are_asked_again_from_the_view_that_the_router_kept(tmp_path: Path) -> None:
    path, clock = tmp_path / "latency.db", ManualClock()
    router, seam = await with_a_loss(path, clock)
    runner.save_after_loss(router.store, router.core.view)
    resumed = router.core.view.seq
    router.begin("r4")
    router.end("r4")
    await router.stop()

    report = asked_again(path)
    assert report.ok, report
    assert (report.decisions, report.identical, report.not_checkable) == (4, 3, 1)
    assert report.resumed == (resumed,)
    assert resumed > seam
    with closing(open_readonly(path)) as reader:
        other = verify(reader.read(), POLICIES, {resumed: view_of(path, resumed)})
    assert (other.identical, other.differing) == (2, 1), "what was lost made a difference to the decision"

    again = Routed(path, clock)
    assert again.core.view.fleet.nodes["ash"].depth == 0
    again.begin("r5")
    again.end("r5")
    await again.stop()
    report = asked_again(path)
    assert report.ok, report
    assert (report.decisions, report.identical, report.not_checkable) == (5, 4, 1), "a new run begins with the log"
    with closing(open_readonly(path)) as reader:
        log, kept = list(reader.read()), runner.after_losses(reader)
    place = max(i for i, recorded in enumerate(log) if isinstance(recorded.event, RouteChosen))
    stray = msgspec.structs.replace(log[place].event, request="r6")
    log[place] = msgspec.structs.replace(log[place], event=stray)
    assert "request r6, which is not open" in verify(log, POLICIES, kept).refused, "nothing was lost in this run"


def view_of(path: Path, seq: int) -> View:
    """Return what the log says at a position."""
    view = VIEW.initial()
    with closing(open_readonly(path)) as reader:
        for recorded in reader.read(until=seq):
            view = VIEW.apply(view, recorded)
    return view


async def test_the_command_tells_where_it_resumed_and_what_cannot_be_checked(tmp_path: Path) -> None:
    router, seam = await with_a_loss(tmp_path / "latency.db", ManualClock())
    runner.save_after_loss(router.store, router.core.view)
    router.begin("r4")
    await router.stop()
    told = CliRunner().invoke(main, ["replay", "verify", f"--data-dir={tmp_path}"])
    assert told.exit_code == 0, told.output
    assert f"1 event was lost at position {seam}, " in told.stdout
    assert (
        f"resumed from the router's own snapshot at position {asked_again(tmp_path / 'latency.db').resumed[0]}\n"
        in (told.stdout)
    )
    assert "1 decision cannot be checked" in told.stdout
    assert "Every other recorded decision comes out the same, bit for bit." in told.stdout


async def test_a_further_loss_ends_what_was_known_after_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    router, _ = await with_a_loss(path, ManualClock())
    runner.save_after_loss(router.store, router.core.view)
    router.begin("r4")
    await router.lose()
    router.begin("r5")
    await router.stop()
    report = asked_again(path)
    assert report.ok, report
    assert (report.identical, report.not_checkable, len(report.seams)) == (3, 2, 2)


async def test_a_retry_of_a_request_that_was_lost_cannot_be_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    router, _ = await with_a_loss(path, ManualClock())
    asked = await router.lose()
    runner.save_after_loss(router.store, router.core.view)
    router.core.choose(asked, cause="a" * 32, attempt=2)
    router.begin("r9")
    await router.stop()
    report = asked_again(path)
    assert report.ok, report
    assert (report.identical, report.not_checkable) == (3, 2)


async def test_a_running_router_keeps_its_view_when_a_loss_is_over(tmp_path: Path) -> None:
    path = tmp_path / "latency.db"
    router, _ = await with_a_loss(path, ManualClock())
    keeping = asyncio.create_task(_keep_snapshots(router.core))
    with closing(open_readonly(path)) as reader:
        async with asyncio.timeout(10):
            while not runner.after_losses(reader):  # noqa: ASYNC110 - the file is all that tells
                await asyncio.sleep(0.05)
        assert list(runner.after_losses(reader)) == [router.core.view.seq]
    keeping.cancel()
    await router.stop()


def test_a_loss_is_over_once_when_the_view_is_at_a_position_of_the_log() -> None:
    losses = runner.Losses()
    assert not losses.over(lost=0, head=5, seq=5)
    assert not losses.over(lost=3, head=5, seq=6), "it goes on"
    assert losses.over(lost=3, head=6, seq=6)
    assert not losses.over(lost=3, head=9, seq=9)
    assert not losses.over(lost=3, head=9, seq=10), "another, of as many"
    assert losses.over(lost=3, head=11, seq=11)
    assert losses.over(lost=4, head=20, seq=20), "one that nobody saw going on"


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
