"""The log hears of what is new, and of nothing else."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from events.recorded import Recorded
from events.types import (
    Event,
    NodeDrainRequested,
    NodeInventoryChanged,
    NodeJoined,
    NodeLeft,
    NodeReported,
    NodeResidencyChanged,
    NodeStatusChanged,
    RequestDispatched,
    RequestFinished,
    RequestReceived,
)
from herd.reports.news import events_of
from herd.reports.place import engine_url, means_one_of
from herd.reports.silence import forgotten, silent
from herd.wire.heartbeat import Engine, Heartbeat, Loaded, Memory, Model, parse
from projections.fleet import FLEET, Fleet, Node
from tests.herd.test_heartbeat import PEER, body

START = 1_767_225_600_000_000_000
S = 1_000_000_000

MODEL = Model(name="llama3.2:3b", size_bytes=2_019_393_189, digest="a80c", capabilities=("completion", "tools"))
LOADED = Loaded(name="llama3.2:3b", size_bytes=4 << 30, context_length=4096, expires_at="2026-01-01T00:05:00Z")
ENGINE = Engine(
    dialect="ollama",
    name="Ollama",
    url="http://localhost:11434",
    version="0.12.3",
    parallel=2,
    models=(MODEL,),
    loaded=(LOADED,),
)
OURS = Heartbeat(
    node_id="ash",
    agent="herd",
    agent_version="0.1.0",
    timestamp=START / S,
    engine=ENGINE,
    memory=Memory(total_gb=32.0, used_gb=8.0, available_gb=24.0),
)


class Ear:
    """Takes heartbeats as the router does, at times that the test sets."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.now = START
        self.source_ip = "192.168.1.20"

    def hear(self, beat: Heartbeat, *, after_s: float = 0.0) -> list[Event]:
        self.now += int(after_s * S)
        found = events_of(beat, source_ip=self.source_ip, node=self.fleet.nodes.get(beat.node_id), now=self.now)
        self.fold(found)
        return found

    def fold(self, found: Sequence[Event]) -> None:
        for event in found:
            seq = self.fleet.seq + 1
            recorded = Recorded(seq=seq, id=f"{seq:032x}", at=self.now, writer="w", writer_seq=seq, event=event)
            self.fleet = FLEET.apply(self.fleet, recorded)

    def at(self, beat: Heartbeat) -> Heartbeat:
        """Return the heartbeat as an agent with a right clock sends it now."""
        return replace(beat, timestamp=self.now / S)

    @property
    def ash(self) -> Node:
        return self.fleet.nodes["ash"]


def kinds(found: Sequence[Event]) -> list[type[Event]]:
    return [type(event) for event in found]


def with_engine(beat: Heartbeat, **changes: Any) -> Heartbeat:
    assert beat.engine is not None
    return replace(beat, engine=replace(beat.engine, **changes))


def only(found: Sequence[Event]) -> NodeReported:
    [event] = found
    assert isinstance(event, NodeReported)
    return event


def test_a_stranger_is_introduced_in_full() -> None:
    ear = Ear()
    found = ear.hear(OURS)
    assert kinds(found) == [NodeJoined, NodeReported, NodeInventoryChanged, NodeResidencyChanged, NodeStatusChanged]
    node = ear.ash
    assert node.status == "online"
    assert node.url == "http://192.168.1.20:11434"
    assert (node.parallel, node.engine.version, node.hardware.memory_total_gib) == (2, "0.12.3", 32.0)
    assert node.models["llama3.2:3b"].capabilities == ("completion", "tools")
    assert node.loaded["llama3.2:3b"].size_bytes == 4 << 30
    assert found[1] == NodeReported(
        node="ash",
        keyframe=True,
        cpu_pct=0.0,
        memory=node.reading.memory,
        engine_up=True,
        clock_skew_s=0,
    )


def test_the_same_heartbeat_again_is_next_to_nothing() -> None:
    ear = Ear()
    ear.hear(OURS)
    assert only(ear.hear(OURS)) == NodeReported(node="ash")


def test_only_what_changed_is_reported() -> None:
    ear = Ear()
    ear.hear(OURS)
    memory = Memory(total_gb=32.0, used_gb=9.0, available_gb=23.0)
    reported = only(ear.hear(ear.at(replace(OURS, memory=memory)), after_s=5))
    assert reported.memory is not None
    assert (reported.memory.used_gib, reported.cpu_pct, reported.engine_up) == (9.0, None, None)


def test_a_keyframe_comes_every_minute_and_no_more_often() -> None:
    ear = Ear()
    ear.hear(OURS)
    frames = [only(ear.hear(ear.at(OURS), after_s=5)).keyframe for _ in range(36)]
    assert frames.count(True) == 3
    assert frames[11] is True


@pytest.mark.parametrize(
    ("beat", "kind"),
    [
        (replace(OURS, agent_version="0.2.0"), NodeJoined),
        (with_engine(OURS, version="0.13.0"), NodeJoined),
        (with_engine(OURS, parallel=4), NodeJoined),
        (with_engine(OURS, url="http://10.0.0.9:11434"), NodeJoined),
        (replace(OURS, memory=Memory(total_gb=64.0, used_gb=8.0, available_gb=24.0)), NodeJoined),
        (with_engine(OURS, models=()), NodeInventoryChanged),
        (with_engine(OURS, models=(replace(MODEL, digest="b91d"),)), NodeInventoryChanged),
        (with_engine(OURS, loaded=()), NodeResidencyChanged),
        (with_engine(OURS, loaded=(replace(LOADED, context_length=8192),)), NodeResidencyChanged),
    ],
)
def test_a_change_is_one_event_and_no_other(beat: Heartbeat, kind: type[Event]) -> None:
    ear = Ear()
    ear.hear(OURS)
    assert {*kinds(ear.hear(beat))} == {kind, NodeReported}
    assert kinds(ear.hear(beat)) == [NodeReported]


def test_an_engine_that_is_down_forgets_nothing() -> None:
    ear = Ear()
    ear.hear(OURS)
    down = Engine(dialect="ollama", name="Ollama", url="http://localhost:11434", up=False)
    assert only(ear.hear(replace(OURS, engine=down))).engine_up is False
    assert (ear.ash.engine.version, ear.ash.parallel, len(ear.ash.models)) == ("0.12.3", 2, 1)
    assert only(ear.hear(OURS)).engine_up is True


def test_an_expiry_that_creeps_on_is_told_once_a_minute() -> None:
    ear = Ear()
    ear.hear(OURS)
    expiry = datetime.fromisoformat(LOADED.expires_at)
    told = 0
    for second in range(5, 605, 5):
        moved = replace(LOADED, expires_at=(expiry + timedelta(seconds=second)).isoformat())
        told += NodeResidencyChanged in kinds(ear.hear(ear.at(with_engine(OURS, loaded=(moved,))), after_s=5))
    assert told == 10


def test_a_model_that_is_now_kept_forever_is_told_at_once() -> None:
    ear = Ear()
    ear.hear(OURS)
    forever = replace(LOADED, expires_at="2318-01-01T00:00:00.123456789-08:00")
    assert NodeResidencyChanged in kinds(ear.hear(with_engine(OURS, loaded=(forever,))))


def test_a_clock_that_is_an_hour_off_is_told_once() -> None:
    ear = Ear()
    ear.hear(OURS)
    ahead = replace(OURS, timestamp=(START + 3600 * S) / S)
    assert only(ear.hear(ahead)).clock_skew_s == 3600
    assert only(ear.hear(replace(ahead, timestamp=ahead.timestamp + 5.4), after_s=5)).clock_skew_s is None
    assert ear.ash.reading.clock_skew_s == 3600
    assert ear.ash.reading.at == ear.now
    assert only(ear.hear(ear.at(OURS))).clock_skew_s == 0


def test_a_slow_network_is_no_skew() -> None:
    ear = Ear()
    ear.hear(OURS)
    assert only(ear.hear(replace(OURS, timestamp=(START - 0.9 * S) / S))).clock_skew_s is None


def test_failures_are_told_as_long_as_the_agent_tells_them() -> None:
    ear = Ear()
    ear.hear(OURS)
    assert only(ear.hear(replace(OURS, connection_failures=7))).connection_failures == 7
    assert only(ear.hear(OURS)).connection_failures is None
    assert ear.ash.reading.connection_failures == 0


def test_a_machine_that_stops_learning_says_so() -> None:
    ear = Ear()
    beat = parse(body(node_id="ash"))
    ear.hear(beat)
    assert ear.ash.reading.capacity is not None
    ear.hear(replace(beat, capacity=None))
    assert ear.ash.reading.capacity is None


# --- the peer's agents ----------------------------------------------------------------------------------------------


def test_the_peers_models_are_read_in_our_units() -> None:
    ear = Ear()
    ear.hear(parse(body(node_id="ash")))
    node = ear.ash
    assert set(node.models) == {"llama3.2:3b", "nomic-embed-text:latest"}
    assert node.models["llama3.2:3b"].size_bytes == 2_019_000_000
    assert node.models["nomic-embed-text:latest"].capabilities == ("embedding",)
    assert node.loaded["llama3.2:3b"].size_bytes == 4 << 30
    assert node.engine.version == "0.12.3"
    assert node.hardware.chip == "Apple M2 Ultra"


def test_metadata_that_the_peer_leaves_out_is_still_true() -> None:
    ear = Ear()
    ear.hear(parse(body(node_id="ash")))
    lean = PEER["ollama"] | {"models_available_meta": None}
    assert kinds(ear.hear(parse(body(node_id="ash", ollama=lean)))) == [NodeReported]


@pytest.mark.parametrize("version", ["", None])
def test_a_peer_that_hides_a_dead_ollama_is_seen_through(version: str | None) -> None:
    ear = Ear()
    ear.hear(parse(body(node_id="ash")))
    empty: dict[str, Any] = {"models_loaded": [], "models_available": [], "requests_active": 0, "version": version}
    ear.hear(parse(body(node_id="ash", ollama=empty)))
    assert ear.ash.reading.engine_up is False
    assert len(ear.ash.models) == 2


def test_an_old_peer_with_an_empty_ollama_is_up() -> None:
    ear = Ear()
    ear.hear(parse(body(node_id="ash", ollama={"models_loaded": [], "models_available": []})))
    assert ear.ash.reading.engine_up is True


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reported", "source_ip", "lan_ip", "url"),
    [
        ("http://localhost:11434", "192.168.1.7", "", "http://192.168.1.7:11434"),
        ("http://127.0.0.1:11500", "192.168.1.7", "10.0.0.1", "http://192.168.1.7:11500"),
        ("http://0.0.0.0:11434", "192.168.1.7", "", "http://192.168.1.7:11434"),
        ("http://10.1.1.1:11434/", "192.168.1.7", "", "http://10.1.1.1:11434"),
        ("http://gpu.example/ollama/", "192.168.1.7", "", "http://gpu.example:80/ollama"),
        ("http://10.1.1.1:11434", "127.0.0.1", "", "http://10.1.1.1:11434"),
        ("http://192.168.1.7:11434", "127.0.0.1", "192.168.1.7", "http://localhost:11434"),
        ("http://localhost:11434", "127.0.0.1", "", "http://localhost:11434"),
        ("http://127.0.0.1:11436", "::1", "", "http://127.0.0.1:11436"),
        ("http://localhost:11434", "::ffff:192.168.1.7", "", "http://192.168.1.7:11434"),
        ("http://localhost:11434", "fd00::7", "", "http://[fd00::7]:11434"),
        ("http://localhost:11434", "", "192.168.1.7", "http://192.168.1.7:11434"),
        ("localhost", "192.168.1.7", "", "http://192.168.1.7:11434"),
        ("", "192.168.1.7", "", "http://192.168.1.7:11434"),
    ],
)
def test_an_engine_is_where_the_router_can_reach_it(reported: str, source_ip: str, lan_ip: str, url: str) -> None:
    heartbeat = parse(body(ollama_host=reported, lan_ip=lan_ip))
    assert engine_url(heartbeat, source_ip) == url


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:11435", True),
        ("http://127.8.8.8:11435", True),
        ("http://localhost:11435", True),
        ("http://0.0.0.0:11435", True),
        ("http://[::1]:11435", True),
        ("http://[::ffff:192.168.1.2]:11435", True),
        ("http://192.168.1.2:11435", True),
        ("http://[fd00:0::2]:11435", True),
        ("http://Router:11435", True),
        ("http://192.168.1.3:11435", False),
        ("http://other:11435", False),
    ],
)
def test_a_machine_knows_its_own_names(url: str, here: bool) -> None:
    assert means_one_of(url, {"192.168.1.2", "fd00::2", "router"}) is here


# --- coming and going -----------------------------------------------------------------------------------------------


def test_silence_degrades_a_node_and_then_takes_it_offline() -> None:
    ear = Ear()
    ear.hear(OURS)
    assert silent(ear.fleet, now=START + 15 * S, timeout_s=15, offline_s=30) == []
    [degraded] = silent(ear.fleet, now=START + 16 * S, timeout_s=15, offline_s=30)
    assert (degraded.status, degraded.was, degraded.silent_ms) == ("degraded", "online", 16_000)
    ear.fold([degraded])
    assert silent(ear.fleet, now=START + 20 * S, timeout_s=15, offline_s=30) == []
    [offline] = silent(ear.fleet, now=START + 31 * S, timeout_s=15, offline_s=30)
    assert (offline.status, offline.was) == ("offline", "degraded")
    ear.fold([offline])
    assert silent(ear.fleet, now=START + 99 * S, timeout_s=15, offline_s=30) == []
    back = ear.hear(OURS)[-1]
    assert isinstance(back, NodeStatusChanged)
    assert (back.status, back.was) == ("online", "offline")


def test_a_router_that_was_away_does_not_blame_the_nodes() -> None:
    ear = Ear()
    ear.hear(OURS)
    now = START + 600 * S
    assert silent(ear.fleet, now=now, timeout_s=15, offline_s=30, listening_since=now - 5 * S) == []


def test_an_agent_that_stops_drains_and_leaves_and_may_come_back() -> None:
    ear = Ear()
    ear.hear(OURS)
    assert kinds(ear.hear(replace(OURS, draining=True))) == [NodeReported, NodeDrainRequested]
    assert ear.ash.status == "draining"
    assert kinds(ear.hear(replace(OURS, draining=True))) == [NodeReported]
    assert kinds(ear.hear(replace(OURS, draining=True, leaving=True))) == [NodeStatusChanged]
    assert ear.hear(replace(OURS, draining=True, leaving=True)) == []
    assert ear.ash.status == "offline"
    ear.hear(OURS)
    assert ear.ash.status == "online"


def test_the_peers_agent_drains_with_one_short_body_and_may_come_back_at_once() -> None:
    ear = Ear()
    ear.hear(parse(body(node_id="ash")))
    farewell = parse(b'{"node_id": "ash", "draining": true}')
    assert ear.hear(farewell) == [NodeDrainRequested(node="ash", by="agent")]
    assert ear.hear(farewell) == []
    [gone] = silent(ear.fleet, now=ear.now + 31 * S, timeout_s=15, offline_s=30)
    assert (gone.status, gone.was) == ("offline", "draining")
    ear.hear(parse(body(node_id="ash")))
    assert ear.ash.status == "online"


def test_an_operators_drain_outlives_heartbeats_silence_and_restarts() -> None:
    ear = Ear()
    ear.hear(OURS)
    ear.fold([NodeDrainRequested(node="ash", by="operator")])
    ear.hear(OURS)
    assert ear.ash.status == "draining"
    ear.fold(silent(ear.fleet, now=ear.now + 31 * S, timeout_s=15, offline_s=30))
    assert ear.ash.status == "offline"
    ear.hear(OURS)
    assert ear.ash.status == "draining"
    assert kinds(ear.hear(replace(OURS, draining=True, leaving=True))) == [NodeStatusChanged]
    assert ear.ash.status == "offline"
    ear.hear(OURS)
    assert ear.ash.status == "draining"
    ear.fold([NodeStatusChanged(node="ash", status="online", was="draining")])
    assert kinds(ear.hear(OURS)) == [NodeReported]


DAY_S = 86_400

ASKED = RequestReceived(
    request="1", kind="chat", dialect="ollama", path="/api/chat", model="m", asked="m", streaming=True
)
RUNS = RequestDispatched(request="1", attempt=1, node="ash", model="m")
ENDED = RequestFinished(request="1", outcome="completed")


def test_a_node_that_is_silent_for_a_day_is_forgotten() -> None:
    ear = Ear()
    ear.hear(OURS)
    ear.fold([NodeStatusChanged(node="ash", status="offline", was="online")])
    assert forgotten(ear.fleet, now=START + DAY_S * S, forget_s=DAY_S) == []
    assert forgotten(ear.fleet, now=START + DAY_S * S + 1, forget_s=DAY_S) == [
        NodeLeft(node="ash", why="silent for 24 h")
    ]


def test_a_node_that_was_forgotten_comes_back_by_itself_with_all_that_it_has() -> None:
    ear = Ear()
    first = ear.hear(OURS)
    was = ear.ash
    ear.fold([NodeStatusChanged(node="ash", status="offline", was="online")])
    ear.fold(forgotten(ear.fleet, now=START + 2 * DAY_S * S, forget_s=DAY_S))
    assert "ash" not in ear.fleet.nodes
    assert ear.hear(OURS) == first
    assert ear.ash == was


def test_a_node_that_left_behind_a_request_comes_back_with_it() -> None:
    ear = Ear()
    ear.hear(OURS)
    ear.fold([ASKED, RUNS])
    ear.hear(replace(OURS, leaving=True))
    assert (ear.ash.status, ear.ash.depth) == ("offline", 1)
    ear.hear(OURS)
    ear.fold([ENDED])
    assert (ear.ash.status, ear.ash.depth) == ("online", 0)
    assert ear.ash.loaded


def test_a_node_is_offline_before_it_is_forgotten() -> None:
    ear = Ear()
    ear.hear(OURS)  # the router was away since, so it has not heard the node be silent
    assert forgotten(ear.fleet, now=START + 9 * DAY_S * S, forget_s=DAY_S) == []


def test_a_node_on_which_a_request_counts_is_not_forgotten() -> None:
    ear = Ear()
    ear.hear(OURS)
    ear.fold([ASKED, RUNS, NodeStatusChanged(node="ash", status="offline", was="online")])
    assert forgotten(ear.fleet, now=START + 2 * DAY_S * S, forget_s=DAY_S) == []
    ear.fold([ENDED])
    assert len(forgotten(ear.fleet, now=START + 2 * DAY_S * S, forget_s=DAY_S)) == 1


def test_a_node_that_an_operator_drained_is_not_forgotten() -> None:
    ear = Ear()
    ear.hear(OURS)
    ear.fold([NodeDrainRequested(node="ash", by="operator")])
    ear.fold(silent(ear.fleet, now=ear.now + 31 * S, timeout_s=15, offline_s=30))
    assert forgotten(ear.fleet, now=START + 2 * DAY_S * S, forget_s=DAY_S) == []


def test_a_stranger_who_says_goodbye_leaves_no_trace() -> None:
    ear = Ear()
    assert ear.hear(parse(b'{"node_id": "ash", "draining": true}')) == []
    assert ear.hear(replace(OURS, leaving=True)) == []
