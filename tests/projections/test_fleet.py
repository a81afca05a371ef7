"""The live view of the machines."""

import pytest

from events.types import (
    Capacity,
    Event,
    Memory,
    Model,
    NodeDrainRequested,
    NodeInventoryChanged,
    NodeLeft,
    NodeReported,
    NodeResidencyChanged,
    NodeStatusChanged,
    Resident,
    RouterStarted,
)
from projections.fleet import Queue, Size, canonical
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
    joined,
    later,
    online,
    received,
    residing,
    served,
    stocked,
)


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("llama3", "llama3:latest"),
        (" Llama3:8B ", "llama3:8b"),
        ("library/llama3", "llama3:latest"),
        ("registry.ollama.ai/library/llama3:8b", "llama3:8b"),
        ("https://registry.ollama.ai/library/llama3", "llama3:latest"),
        ("hf.co/user/repo:Q4_K_M", "hf.co/user/repo:q4_k_m"),
        ("localhost:5000/team/model", "localhost:5000/team/model:latest"),
        ("qwen3:8b:local", "qwen3:8b"),
    ],
)
def test_all_spellings_of_a_model_meet(spelling: str, key: str):
    assert canonical(spelling) == key
    assert canonical(key) == key


def test_a_reading_that_is_absent_has_not_changed():
    node = given(
        NodeReported(node="ash", keyframe=True, cpu_pct=10.0, memory=Memory(used_gib=4.0), engine_up=False),
        later(s=5),
        NodeReported(node="ash", cpu_pct=20.0),
    ).fleet.nodes["ash"]
    assert (node.reading.cpu_pct, node.reading.memory, node.reading.engine_up) == (20.0, Memory(used_gib=4.0), False)
    assert node.reading.at == START + 5_000_000_000


def test_only_a_keyframe_takes_a_capacity_away():
    history = given(NodeReported(node="ash", keyframe=True, capacity=Capacity(mode="learned_low")))
    assert history.when(NodeReported(node="ash")).fleet.nodes["ash"].reading.capacity is not None
    assert history.when(NodeReported(node="ash", keyframe=True)).fleet.nodes["ash"].reading.capacity is None


def test_a_node_that_joins_again_keeps_what_is_known_of_it():
    node = given(
        joined("ash"), stocked("ash", "llama3"), online("ash"), later(s=9), joined("ash", parallel=4)
    ).fleet.nodes["ash"]
    assert (node.joined_at, node.slots, node.status) == (START, 4, "online")
    assert node.has(LLAMA)


def test_a_model_that_left_memory_is_remembered_until_it_comes_back():
    history = given(residing("ash", "llama3", "qwen3"), later(s=60), residing("ash", "qwen3"))
    assert history.fleet.nodes["ash"].unloaded_at == {LLAMA: START + 60_000_000_000}
    assert history.when(residing("ash", "llama3")).fleet.nodes["ash"].unloaded_at.keys() == {"qwen3:latest"}


def test_a_node_is_what_it_was_last_said_to_be():
    history = given(joined("ash"), online("ash"))
    assert history.fleet.nodes["ash"].status == "online"
    assert history.when(NodeDrainRequested(node="ash", by="op")).fleet.nodes["ash"].status == "draining"
    assert history.when(NodeStatusChanged(node="ash", status="degraded")).fleet.nodes["ash"].status == "degraded"


def test_a_node_that_left_is_forgotten():
    history = given(joined("ash"), joined("birch"), online("ash"), stocked("ash", "llama3"), NodeLeft(node="ash"))
    assert history.fleet.nodes.keys() == {"birch"}
    assert history.when(NodeLeft(node="ash")).fleet.nodes.keys() == {"birch"}


def test_a_node_that_left_stays_until_its_last_request_is_over():
    busy = given(
        joined("ash"), online("ash"), residing("ash", "llama3"),
        received("a"), dispatched("a", "ash"), received("b"), enqueued("b", "ash"), NodeLeft(node="ash"),
    )  # fmt: skip
    left = busy.fleet.nodes["ash"]
    assert (left.status, left.loaded, left.depth) == ("offline", {}, 2)
    last = busy.when(finished("a"), dispatched("b", "ash"))
    assert (last.fleet.nodes["ash"].left, last.fleet.nodes["ash"].in_flight) == (True, 1)
    assert not last.when(attempt_failed("b", "ash")).fleet.nodes
    assert not last.when(finished("b")).fleet.nodes


@pytest.mark.parametrize(
    "sign",
    [
        joined("ash"),
        online("ash"),
        stocked("ash", "llama3"),
        residing("ash", "llama3"),
        NodeReported(node="ash"),
        NodeDrainRequested(node="ash", by="agent"),
    ],
    ids=lambda sign: type(sign).__name__,
)
def test_a_node_that_comes_back_before_its_last_request_is_over_is_not_forgotten(sign: Event):
    busy = given(joined("ash"), online("ash"), received("a"), dispatched("a", "ash"), NodeLeft(node="ash"))
    assert busy.when(sign, finished("a")).fleet.nodes.keys() == {"ash"}
    silent = NodeStatusChanged(node="ash", status="offline")
    assert not busy.when(silent, finished("a")).fleet.nodes


def test_the_smallest_copy_of_a_model_counts_while_its_node_is_there():
    history = given(
        NodeInventoryChanged(node="ash", models=(Model(name="llama3", size_bytes=5), Model(name="qwen3"))),
        NodeInventoryChanged(node="birch", models=(Model(name="llama3", size_bytes=4),)),
        NodeResidencyChanged(node="birch", loaded=(Resident(name="llama3", size_bytes=6),)),
    )
    assert history.fleet.sizes == {LLAMA: Size(resident_bytes=6, weights_bytes=4)}
    assert history.when(NodeLeft(node="birch")).fleet.sizes == {LLAMA: Size(weights_bytes=5)}
    assert history.when(stocked("birch"), residing("birch"), stocked("ash")).fleet.sizes == {}


def test_who_drained_a_node_is_known_until_it_is_online_again():
    history = given(joined("ash"), online("ash"), NodeDrainRequested(node="ash", by="op"))
    offline = history.when(NodeStatusChanged(node="ash", status="offline"))
    assert offline.fleet.nodes["ash"].drained_by == "op"
    assert offline.when(online("ash")).fleet.nodes["ash"].drained_by == ""


def test_a_request_moves_from_the_line_to_a_slot_and_out():
    history = given(joined("ash"), received("r"), enqueued("r", "ash"))
    assert history.fleet.nodes["ash"].queues == {LLAMA: Queue(waiting=1)}
    history = history.when(dispatched("r", "ash"))
    assert history.fleet.nodes["ash"].queues == {LLAMA: Queue(in_flight=1)}
    assert (history.fleet.nodes["ash"].in_flight, history.fleet.nodes["ash"].depth) == (1, 1)
    history = history.when(finished("r"))
    assert history.fleet.nodes["ash"].queues == {LLAMA: Queue(completed=1)}
    assert not history.fleet.requests


def test_load_of_all_models_counts_for_a_machine():
    history = given(
        *((received(f"r{n}"), enqueued(f"r{n}", "ash", model)) for n, model in enumerate(("a:1", "b:1", "b:1"))),
        dispatched("r2", "ash", "b:1"),
    )
    assert (history.fleet.nodes["ash"].in_flight, history.fleet.nodes["ash"].depth) == (1, 3)


def test_a_request_can_move_to_another_line():
    nodes = given(received("r"), enqueued("r", "ash"), enqueued("r", "birch")).fleet.nodes
    assert (nodes["ash"].depth, nodes["birch"].depth) == (0, 1)


def test_a_failed_attempt_frees_its_slot_and_counts_once():
    history = given(received("r"), dispatched("r", "ash"), attempt_failed("r", "ash"))
    assert history.fleet.nodes["ash"].queues == {LLAMA: Queue(failed=1)}
    assert history.fleet.requests["r"].node is None
    assert history.when(finished("r", "failed")).fleet.nodes["ash"].queues == {LLAMA: Queue(failed=1)}


def test_an_event_that_concerns_no_machine_moves_the_position_alone():
    history = given(joined("ash"), served("r", "ash"))
    later_on = history.when(chosen("x", "ash"), RouterStarted(version="1"), first_token("x", "ash"))
    assert later_on.fleet.seq == history.fleet.seq + 3
    assert (later_on.fleet.nodes, later_on.fleet.requests) == (history.fleet.nodes, history.fleet.requests)


def test_events_of_a_request_whose_beginning_is_not_in_the_log_change_nothing():
    fleet = given(enqueued("r", "ash"), dispatched("r", "ash"), attempt_failed("r", "ash"), finished("r")).fleet
    assert (fleet.nodes, len(fleet.requests), fleet.seq) == ({}, 0, 4)
