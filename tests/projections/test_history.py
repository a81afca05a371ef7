"""The bugs of event sourcing are in orders nobody thought of: any legal history, checked after each step."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from events.jsonl import dump, load
from events.recorded import Recorded
from events.types import (
    Capacity,
    Disk,
    Event,
    Memory,
    NodeDrainRequested,
    NodeLeft,
    NodeReported,
    NodeStatusChanged,
    Outcome,
    RouterStarted,
    Thermal,
)
from projections.fleet import UNKNOWN, Queue, sizes
from projections.traces import Trace, Traces, fold
from projections.view import VIEW, decode, encode
from tests.given import (
    START,
    attempt_failed,
    chosen,
    dispatched,
    enqueued,
    finished,
    first_token,
    joined,
    received,
    residing,
    stocked,
)

NODES = st.sampled_from(["ash", "birch", "cedar"])
MODELS = st.sampled_from(["llama3:latest", "qwen3:8b", "nomic-embed-text:latest"])
NAMES = st.lists(st.sampled_from(["llama3", "Qwen3:8b", "nomic-embed-text"]), unique=True)
READINGS = st.builds(
    NodeReported,
    node=NODES,
    keyframe=st.booleans(),
    cpu_pct=st.none() | st.floats(0, 100),
    memory=st.none() | st.builds(Memory, used_gib=st.floats(0, 512), pressure=st.sampled_from(["normal", "warn"])),
    thermal=st.none() | st.builds(Thermal, temperature_c=st.floats(0, 120)),
    disk=st.none() | st.builds(Disk, total_gib=st.just(10.0), used_gib=st.just(1.0), available_gib=st.just(9.0)),
    capacity=st.none() | st.builds(Capacity, availability=st.floats(0, 1)),
    engine_up=st.none() | st.booleans(),
)
SERVED: list[Outcome] = ["completed", "failed", "incomplete", "no_output", "cancelled", "abandoned"]
UNSERVED: list[Outcome] = ["failed", "rejected", "cancelled", "expired", "abandoned"]


class OpenRequest:
    """What a request is doing, as plainly as possible."""

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        self.model = model
        self.phase = "received"
        self.node: str | None = None
        self.attempt = 0
        self.failures = 0
        self.retries = 0


class Histories(RuleBasedStateMachine):
    """Makes legal histories and believes nothing of the folds."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Recorded] = []
        self.now = START
        self.live = VIEW.initial()
        self.replayed = VIEW.initial()
        self.table = Traces()
        self.rows: list[Trace] = []
        self.open: dict[str, OpenRequest] = {}
        self.ended: Counter[tuple[str, str, bool]] = Counter()
        self.leaving: set[str] = set()
        self.completed: Counter[tuple[str, str]] = Counter()
        self.retried: Counter[str] = Counter()
        self.finished = 0
        self.count = 0

    def happens(self, event: Event) -> None:
        self.now += 7_300_000
        seq = len(self.log) + 1
        recorded = Recorded(
            seq=seq, id=f"{seq:032x}", at=self.now, writer="w", writer_seq=seq, event=event, schema=event.schema
        )
        self.log.append(recorded)
        self.live = VIEW.apply(self.live, recorded)
        self.replayed = VIEW.apply(self.replayed, load(dump(recorded)))
        self.table, finals = fold(self.table, recorded)
        self.rows += finals

    def pick(self, data: st.DataObject, *phases: str) -> OpenRequest | None:
        there = [request for request in self.open.values() if request.phase in phases]
        return data.draw(st.sampled_from(there)) if there else None

    def end(self, request: OpenRequest, outcome: Outcome) -> None:
        good = outcome in ("completed", "no_output")
        if request.node is not None and (good or outcome in ("failed", "incomplete")):  # the others are not its doing
            self.ended[request.node, request.model, good] += 1
        if outcome == "completed":
            self.completed[request.node or "", request.model] += 1
        del self.open[request.name]
        self.finished += 1
        tokens = {"prompt_tokens": 10, "completion_tokens": 20, "generate_ms": 300} if outcome == "completed" else {}
        self.happens(finished(request.name, outcome, node=request.node, attempts=request.attempt, **tokens))

    @rule(node=NODES, parallel=st.integers(0, 4))
    def a_node_joins(self, node: str, parallel: int) -> None:
        self.leaving.discard(node)
        self.happens(joined(node, parallel=parallel))

    @rule(reading=READINGS)
    def a_node_reports(self, reading: NodeReported) -> None:
        self.leaving.discard(reading.node)
        self.happens(reading)

    @rule(node=NODES, names=NAMES, on_disk=st.booleans())
    def models_come_and_go(self, node: str, names: list[str], on_disk: bool) -> None:
        self.leaving.discard(node)
        self.happens(stocked(node, *names) if on_disk else residing(node, *names))

    @rule(node=NODES, status=st.sampled_from(["online", "degraded", "offline", "draining"]))
    def a_node_changes_status(self, node: str, status: str) -> None:
        if status != "offline":
            self.leaving.discard(node)
        self.happens(NodeStatusChanged(node=node, status=status))  # pyright: ignore[reportArgumentType]

    @rule(node=NODES)
    def a_node_is_drained(self, node: str) -> None:
        self.leaving.discard(node)
        self.happens(NodeDrainRequested(node=node, by="op"))

    @rule(node=NODES)
    def a_node_leaves(self, node: str) -> None:
        if node in self.live.fleet.nodes:
            self.leaving.add(node)
        self.happens(NodeLeft(node=node))

    @rule(model=MODELS)
    def a_request_arrives(self, model: str) -> None:
        self.count += 1
        request = OpenRequest(f"r{self.count}", model)
        self.open[request.name] = request
        self.happens(received(request.name, model))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), node=NODES, wait=st.booleans())
    def a_request_is_placed(self, data: st.DataObject, node: str, wait: bool) -> None:
        request = self.pick(data, "received")
        if request is None:
            return
        if request.failures > request.retries:
            request.retries += 1
            self.retried[request.name] += 1
        request.attempt += 1
        self.happens(chosen(request.name, node, request.model, attempt=request.attempt))
        request.node, request.phase = node, "waiting" if wait else "running"
        place = enqueued if wait else dispatched
        self.happens(place(request.name, node, request.model, attempt=request.attempt))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def a_slot_becomes_free(self, data: st.DataObject) -> None:
        if request := self.pick(data, "waiting"):
            request.phase = "running"
            self.happens(dispatched(request.name, request.node or "", request.model, attempt=request.attempt))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def an_answer_begins(self, data: st.DataObject) -> None:
        if request := self.pick(data, "running"):
            request.phase = "answering"
            self.happens(first_token(request.name, request.node or "", attempt=request.attempt))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def an_attempt_fails(self, data: st.DataObject) -> None:
        if request := self.pick(data, "running"):
            self.ended[request.node or "", request.model, False] += 1
            self.happens(attempt_failed(request.name, request.node or "", request.model, attempt=request.attempt))
            request.phase, request.node = "received", None
            request.failures += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def nobody_can_serve(self, data: st.DataObject) -> None:
        if request := self.pick(data, "received"):
            self.happens(chosen(request.name, None, request.model, attempt=request.attempt + 1))
            self.end(request, "failed" if request.failures else "rejected")

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def a_request_ends(self, data: st.DataObject) -> None:
        request = self.pick(data, "received", "waiting", "running", "answering")
        assert request is not None
        running = request.phase in ("running", "answering")
        self.end(request, data.draw(st.sampled_from(SERVED if running else UNSERVED)))

    @rule()
    def the_router_starts_again_from_a_snapshot(self) -> None:
        self.live = decode(encode(self.live))
        self.happens(RouterStarted(version="1"))

    @rule()
    def the_table_starts_again_from_the_log(self) -> None:
        again = Traces(seq=self.table.low - 1)
        for recorded in self.log[self.table.low - 1 :]:
            again, _ = fold(again, recorded)
        assert again == self.table

    @invariant()
    def lines_hold_what_stands_in_them_and_who_left_is_forgotten_with_the_last(self) -> None:
        gone = self.leaving - {one.node for one in self.open.values()}
        assert not gone & self.live.fleet.nodes.keys()
        assert self.leaving - gone <= self.live.fleet.nodes.keys()
        self.leaving -= gone
        self.ended = Counter({place: count for place, count in self.ended.items() if place[0] not in gone})
        expected: dict[tuple[str, str], Queue] = {}
        places = {(node, model) for node, model, _ in self.ended}
        places |= {(one.node, one.model) for one in self.open.values() if one.node is not None}
        for node, model in places:
            here = [one.phase for one in self.open.values() if (one.node, one.model) == (node, model)]
            expected[node, model] = Queue(
                waiting=here.count("waiting"),
                in_flight=len(here) - here.count("waiting"),
                completed=self.ended[node, model, True],
                failed=self.ended[node, model, False],
            )
        nodes = self.live.fleet.nodes.values()
        # A line that a request only passed through stays behind, empty: it says that this model was asked for here.
        assert {key: queue for key, queue in expected.items() if queue != Queue()} == {
            (node.name, model): queue for node in nodes for model, queue in node.queues.items() if queue != Queue()
        }
        assert sum(node.depth for node in nodes) == sum(one.node is not None for one in self.open.values())
        assert all(node.in_flight == sum(queue.in_flight for queue in node.queues.values()) for node in nodes)

    @invariant()
    def the_smallest_copy_of_each_model_is_known(self) -> None:
        nodes = self.live.fleet.nodes.values()
        models = {model for node in nodes for model in (*node.models, *node.loaded)}
        found = sizes(nodes, models)
        assert self.live.fleet.sizes == {model: size for model, size in found.items() if size != UNKNOWN}

    @invariant()
    def exactly_the_unfinished_requests_are_open(self) -> None:
        assert set(self.live.fleet.requests) == set(self.open) == set(self.table.open)
        running = {one.name for one in self.open.values() if one.phase in ("running", "answering")}
        assert set(self.live.latency.running) == running

    @invariant()
    def every_completed_request_was_observed(self) -> None:
        stats = {(node, model): s.samples for node, by in self.live.latency.nodes.items() for model, s in by.items()}
        assert stats == self.completed

    @invariant()
    def a_log_that_was_written_and_read_gives_the_live_view(self) -> None:
        assert self.replayed == self.live
        assert self.live.seq == self.live.latency.seq == self.table.seq == len(self.log)

    @invariant()
    def every_finished_request_has_one_terminal_row_and_one_for_each_retry(self) -> None:
        terminal = Counter(row.request_id for row in self.rows if row.status != "retried")
        assert len(terminal) == terminal.total() == self.finished
        assert Counter(row.request_id for row in self.rows if row.status == "retried") == self.retried
        ended = [row for row in self.rows if row.request_id not in self.open]
        assert sum(row.retry_count for row in ended) == sum(row.status == "retried" for row in ended)
        assert all(row.error_message for row in self.rows if row.status in ("failed", "retried"))


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
