"""The policy `classic` scores as the earlier router was measured to, without what was wrong there."""

from typing import Any

import pytest

from events.types import Capacity
from herd.errors import SettingsError
from herd.routing import POLICIES
from herd.routing.classic import VERSION
from herd.routing.decide import DECIDING_VERSION, fingerprint
from herd.routing.policy import Ask
from herd.settings import RouterSettings
from projections.fleet import Node, Queue
from tests.herd.fleets import (
    GB,
    NOW,
    S,
    ask,
    candidate_of,
    decided,
    in_memory,
    node,
    on_disk,
    points,
    view,
)

CLASSIC = POLICIES["classic"]({})


def pair(model: str, gb: float, context: int, *, hot: bool = True) -> tuple[Node, Node]:
    """Two machines with 64 GB, 54 of them free, and 400 and 300 GB/s."""
    loaded = (in_memory(model, gb, context=context),) if hot else ()
    disk = (on_disk(model, gb),)
    return (
        node("A", bandwidth=400, disk=disk, loaded=loaded),
        node("B", bandwidth=300, disk=disk, loaded=loaded),
    )


C = node("C", total=12, available=6, disk=(on_disk("solo:8b"),), loaded=(in_memory("solo:8b"),))
D = node(
    "D", disk=(on_disk("nomic-embed-text", 0.3),), loaded=(in_memory("nomic-embed-text", 0.3, context=2048),)
)  # fmt: skip
COLD_A = node("A", bandwidth=400, disk=(on_disk("qwen3-coder:30b", 10),))

GOLDEN: dict[str, tuple[tuple[Node, ...], Ask, dict[str, float], str]] = {
    "small and hot on both": (pair("llama3", 5, 8192), ask("llama3"), {"A": 94.0, "B": 95.5}, "B"),
    "mid-size and hot on both": (pair("gpt-oss:20b", 14, 32768), ask("gpt-oss:20b"), {"A": 94.0, "B": 92.5}, "A"),
    "the same on a retry without a token estimate": (
        pair("gpt-oss:20b", 14, 32768),
        ask("gpt-oss:20b", tokens=0, attempt=2, excluded=("A",)),
        {"B": 77.5},
        "B",
    ),
    "cold, just pulled": (
        (COLD_A, node("B", bandwidth=300)),
        ask("qwen3-coder:30b"),
        {"A": 39.0},
        "A",
    ),
    "hot on a small machine of unknown bandwidth": (
        (*pair("llama3", 5, 8192), C),
        ask("solo:8b"),
        {"C": 100.0},
        "C",
    ),
    "small and cold on both": (pair("cold:8b", 5, 0, hot=False), ask("cold:8b"), {"A": 39.0, "B": 40.5}, "B"),
    "an embedding model on a machine of unknown bandwidth": (
        (D,),
        ask("nomic-embed-text", kind="embed"),
        {"D": 93.0},
        "D",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_the_measured_scores_are_kept(case: str) -> None:
    nodes, question, totals, winner = GOLDEN[case]
    decision = decided(view(*nodes), question, CLASSIC)
    assert {candidate.node: candidate.total for candidate in decision.candidates} == totals
    assert decision.node == winner
    assert decision.score == totals[winner]


def test_the_points_of_a_measured_score_are_kept_one_by_one() -> None:
    decision = decided(view(*pair("llama3", 5, 8192)), ask("llama3"), CLASSIC)
    assert points(decision, CLASSIC, "A") == {
        "thermal": 50.0,
        "memory_fit": 20.0,
        "queue_depth": 0.0,
        "wait_time": 0.0,
        "role_affinity": 9.0,
        "availability_trend": 0.0,
        "context_fit": 15.0,
    }
    assert candidate_of(decision, "A").reading_age_ms == 1000


@pytest.mark.parametrize(
    ("bandwidth", "small", "mid", "large"),
    [
        (68, 13.98, 4.02, 6.7),
        (100, 13.5, 4.5, 7.5),
        (200, 12, 6, 10),
        (400, 9, 9, 15),
        (546, 6.81, 11.19, 18.65),
        (800, 3, 15, 25),
        (3350, 3, 15, 25),
    ],
)
def test_role_affinity_follows_bandwidth(bandwidth: float, small: float, mid: float, large: float) -> None:
    for gb, expected in ((5, small), (14, mid), (40, large)):
        fleet = view(node("a", bandwidth=bandwidth, disk=(on_disk("m", gb),), available=200))
        got = points(decided(fleet, ask("m"), CLASSIC), CLASSIC, "a")["role_affinity"]
        assert got == pytest.approx(expected)


@pytest.mark.parametrize(
    ("total", "small", "mid", "large"),
    [(16, 15, 5, 0), (32, 15, 5, 5), (64, 8, 5, 5), (128, 8, 5, 15), (192, 3, 5, 15)],
)
def test_role_affinity_follows_memory_where_no_bandwidth_is_known(
    total: float, small: float, mid: float, large: float
) -> None:
    for gb, expected in ((5, small), (14, mid), (40, large)):
        fleet = view(node("a", total=total, disk=(on_disk("m", gb),), available=200))
        assert points(decided(fleet, ask("m"), CLASSIC), CLASSIC, "a")["role_affinity"] == expected


def test_a_machine_of_unknown_bandwidth_stands_on_the_scale_of_the_others() -> None:
    """The earlier router gave it 15 points from the other scale, and so every small model."""
    disk = (on_disk("m"),)
    known = [node(f"k{i}", bandwidth=bw, disk=disk) for i, bw in enumerate((100, 400, 800))]
    decision = decided(view(*known, node("unknown", total=12, disk=disk)), ask("m"), CLASSIC)
    assert points(decision, CLASSIC, "unknown")["role_affinity"] == 9.0
    decision = decided(view(*known[:2], node("unknown", total=12, disk=disk)), ask("m"), CLASSIC)
    assert points(decision, CLASSIC, "unknown")["role_affinity"] == (13.5 + 9.0) / 2


def test_bandwidth_can_be_left_out_of_role_affinity() -> None:
    policy = POLICIES["classic"]({"bandwidth_aware_scoring": False})
    fleet = view(node("a", bandwidth=400, total=64, disk=(on_disk("m"),)))
    assert points(decided(fleet, ask("m"), policy), policy, "a")["role_affinity"] == 8.0


@pytest.mark.parametrize(
    ("available", "expected"),
    [(21, 20.0), (20, 15.0), (16, 15.0), (15, 8.0), (13, 8.0), (12, 3.0), (10, 3.0)],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_memory_fit_has_tiers_that_scale_with_their_maximum(available: float, expected: float, scale: int) -> None:
    policy = POLICIES["classic"]({"score_memory_fit_max": 20.0 * scale})
    model = on_disk("m", 10 * 1024**3 / GB)
    got = points(decided(view(node("a", disk=(model,), available=available)), ask("m"), policy), policy, "a")
    assert got["memory_fit"] == expected * scale


def test_memory_fit_uses_a_cost_that_was_measured_anywhere() -> None:
    cold = node("cold", disk=(on_disk("m", 5),), available=21)
    hot = node("hot", disk=(on_disk("m", 5),), loaded=(in_memory("m", 15 * 1024**3 / GB),))
    decision = decided(view(cold, hot), ask("m"), CLASSIC)
    assert points(decision, CLASSIC, "cold")["memory_fit"] == 8.0  # 21 / 15, and not 21 / 4.7


def test_a_model_of_unknown_size_gets_nothing_for_memory_and_the_middle_for_its_role() -> None:
    decision = decided(view(node("a", disk=(on_disk("m", 0),), bandwidth=400)), ask("m"), CLASSIC)
    got = points(decision, CLASSIC, "a")
    assert (got["memory_fit"], got["role_affinity"]) == (0.0, 9.0)


@pytest.mark.parametrize(("ago_s", "expected"), [(0, 30.0), (1799, 30.0), (1800, 10.0), (None, 10.0)])
def test_a_model_is_warm_for_half_an_hour(ago_s: int | None, expected: float) -> None:
    unloaded = {} if ago_s is None else {"m:latest": NOW - ago_s * S}
    decision = decided(view(node("a", disk=(on_disk("m"),), unloaded_at=unloaded)), ask("m"), CLASSIC)
    assert points(decision, CLASSIC, "a")["thermal"] == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (8193, -15.0),
        (8192, 3.0),
        (5462, 3.0),
        (5461, 7.5),
        (2731, 7.5),
        (2730, 12.0),
        (1025, 12.0),
        (1024, 15.0),
        (0, 0.0),
    ],
)
def test_context_fit_compares_the_loaded_context_with_the_prompt(tokens: int, expected: float) -> None:
    decision = decided(view(node("a", loaded=(in_memory("m"),))), ask("m", tokens=tokens), CLASSIC)
    assert points(decision, CLASSIC, "a")["context_fit"] == expected


def busy(name: str, model: str, count: int, *, bandwidth: float = 0.0, parallel: int = 0) -> Node:
    return node(
        name,
        loaded=(in_memory("m"),),
        bandwidth=bandwidth,
        parallel=parallel,
        queues={model: Queue(waiting=count // 2, in_flight=count - count // 2)},
    )


@pytest.mark.parametrize(("depth", "expected"), [(1, -6.0), (3, -18.0), (5, -30.0), (9, -30.0)])
def test_load_counts_whatever_its_model(depth: int, expected: float) -> None:
    for model in ("m:latest", "another:1b"):
        decision = decided(view(busy("a", model, depth)), ask("m"), CLASSIC)
        assert points(decision, CLASSIC, "a")["queue_depth"] == expected


def test_a_faster_machine_bears_more() -> None:
    nodes = [busy("fast", "m:latest", 2, bandwidth=800), busy("slow", "m:latest", 2, bandwidth=100)]
    fleet = view(*nodes, node("third", bandwidth=400))
    decision = decided(fleet, ask("m"), CLASSIC)
    assert points(decision, CLASSIC, "fast")["queue_depth"] == -6.0  # 2 x 6 / (800 / 400)
    assert points(decision, CLASSIC, "slow")["queue_depth"] == -30.0  # 2 x 6 / 0.25, cut off
    plain = POLICIES["classic"]({"queue_penalty_bandwidth_normalize": False})
    assert points(decided(fleet, ask("m"), plain), plain, "fast")["queue_depth"] == -12.0


def test_machines_that_are_offline_do_not_shift_the_median() -> None:
    gone = [node(f"gone{i}", bandwidth=50, status="offline") for i in range(5)]
    fleet = view(busy("a", "m:latest", 2, bandwidth=400), node("b", bandwidth=200), *gone)
    decision = decided(fleet, ask("m"), CLASSIC)
    assert points(decision, CLASSIC, "a")["queue_depth"] == pytest.approx(-12 / (400 / 300))


def test_the_wait_is_measured_service_time_shared_between_slots() -> None:
    p75 = {("a", "m:latest"): 20_000.0, ("a", "other:1b"): 50_000.0}
    for parallel, expected in ((0, -4.0), (1, -4.0), (4, -1.0)):
        fleet = view(busy("a", "m:latest", 2, parallel=parallel), p75_ms=p75)
        assert points(decided(fleet, ask("m"), CLASSIC), CLASSIC, "a")["wait_time"] == expected
    fleet = view(busy("a", "other:1b", 3), p75_ms=p75)
    assert points(decided(fleet, ask("m"), CLASSIC), CLASSIC, "a")["wait_time"] == -15.0
    fleet = view(busy("a", "other:1b", 9), p75_ms=p75)
    assert points(decided(fleet, ask("m"), CLASSIC), CLASSIC, "a")["wait_time"] == -25.0


def test_the_wait_is_estimated_before_anything_was_measured() -> None:
    known = decided(view(busy("a", "m:latest", 10, bandwidth=50)), ask("m"), CLASSIC)
    assert points(known, CLASSIC, "a")["wait_time"] == pytest.approx(-10 * (100 / 60) / 10)
    unknown = decided(view(busy("a", "m:latest", 10)), ask("m"), CLASSIC)
    assert points(unknown, CLASSIC, "a")["wait_time"] == pytest.approx(-10 * (100 / 20) / 10)


def test_a_server_is_never_worse_than_a_laptop_whose_owner_might_need_it() -> None:
    loaded = (in_memory("m"),)
    for availability, expected in ((1.0, 0.0), (0.75, -2.5), (0.2, -8.0)):
        capacity = Capacity(availability=availability)
        fleet = view(node("laptop", loaded=loaded, capacity=capacity), node("server", loaded=loaded))
        decision = decided(fleet, ask("m"), CLASSIC)
        assert points(decision, CLASSIC, "laptop")["availability_trend"] == expected
        assert points(decision, CLASSIC, "server")["availability_trend"] == 0.0


def test_parameters_are_complete_and_their_hash_tells_them_apart() -> None:
    assert POLICIES["classic"](CLASSIC.parameters).hash == CLASSIC.hash
    assert len(CLASSIC.hash) == 12
    for name, value in CLASSIC.parameters.items():
        other = POLICIES["classic"]({name: not value if isinstance(value, bool) else value + 1})
        assert other.hash != CLASSIC.hash, name


def test_another_admission_or_another_way_with_ties_is_another_hash() -> None:
    now = fingerprint("classic", VERSION, CLASSIC.parameters, deciding=DECIDING_VERSION)
    assert now == CLASSIC.hash
    assert fingerprint("classic", VERSION, CLASSIC.parameters, deciding=DECIDING_VERSION + 1) != now


@pytest.mark.parametrize("wrong", [{"score_model_hot": -1}, {"score_model_hot": "many"}, {"score_model_hott": 1.0}])
def test_a_parameter_that_has_no_sense_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="score_model_hot"):
        POLICIES["classic"](wrong)


def test_every_parameter_is_a_setting_of_the_same_name_and_default() -> None:
    settings = RouterSettings()
    assert {name: getattr(settings, name) for name in CLASSIC.parameters} == CLASSIC.parameters


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers_to_its_name_and_can_be_built_again(name: str) -> None:
    policy = POLICIES[name]({})
    assert policy.name == name
    assert POLICIES[name](policy.parameters).hash == policy.hash
