"""Admission gives each refused node its reason, and the draw among equals favours nobody."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.types import Capacity
from herd.routing import POLICIES
from herd.routing.chance import Chance
from herd.routing.policy import Ask, Candidate, Ranking
from projections.fleet import Node, Queue
from projections.view import View
from tests.herd.fleets import GB, GIB, ask, decided, in_memory, node, on_disk, view

CLASSIC = POLICIES["classic"]({})
M = on_disk("m", 10 * GIB / GB)
HOT = (in_memory("m", 10 * GIB / GB),)


class Ranked:
    """A policy that gives the totals it was told."""

    name = "ranked"
    hash = "0" * 12
    signals = ("told",)

    def __init__(self, totals: dict[str, float], propensity: float = 1.0) -> None:
        self.parameters: dict[str, Any] = {}
        self._totals = totals
        self._propensity = propensity

    def rank(self, view: View, ask: Ask, admitted: list[Node], chance: Chance, *, now: int) -> Ranking:
        ranked = sorted(admitted, key=lambda node: -self._totals[node.name])
        return Ranking(
            candidates=tuple(
                Candidate(
                    node=node.name,
                    total=self._totals[node.name],
                    points=(self._totals[node.name],),
                    reading_age_ms=0,
                )
                for node in ranked
            ),
            propensity=self._propensity,
        )


EMBEDDER = on_disk("m", capabilities=("embedding",))
TALKER = on_disk("m", capabilities=("completion", "tools"))

REFUSED = {
    "offline": (node("a", status="offline", disk=(M,)), ask("m"), "offline", "1 s old"),
    "silent for ever": (Node(name="a"), ask("m"), "offline", "never reported"),
    "draining": (
        node("a", status="draining", disk=(M,), queues={"m:latest": Queue(in_flight=2)}),
        ask("m"),
        "draining",
        "still to finish: 2",
    ),
    "engine down": (node("a", disk=(M,), engine_up=False), ask("m"), "engine_down", "1 s ago"),
    "excluded": (node("a", disk=(M,)), ask("m", attempt=2, excluded=("a",)), "excluded", "attempt 2"),
    "paused": (node("a", disk=(M,), capacity=Capacity(mode="paused", availability=0.9)), ask("m"), "paused", "0.90"),
    "bootstrap": (
        node("a", loaded=HOT, capacity=Capacity(mode="bootstrap", days_observed=2.5)),
        ask("m"),
        "bootstrap",
        "2.5 days",
    ),
    "unavailable": (node("a", loaded=HOT, capacity=Capacity(availability=0.19)), ask("m"), "unavailable", "0.19"),
    "absent": (node("a", disk=(on_disk("other"),)), ask("m"), "model_absent", "its models (1)"),
    "critical": (node("a", disk=(M,), pressure="critical"), ask("m"), "memory_critical", "54.0 GiB available"),
    "too small": (node("a", disk=(M,), available=9.9), ask("m"), "memory_short", "needs 10.0 GiB; 9.9 GiB"),
    "too small for its owner": (
        node("a", disk=(M,), capacity=Capacity(ceiling_gib=8)),
        ask("m"),
        "memory_short",
        "needs 10.0 GiB; 8.0 GiB",
    ),
    "full of a model in use": (
        node("a", disk=(M,), available=4, loaded=(in_memory("x", 20),), queues={"x:latest": Queue(in_flight=1)}),
        ask("m"),
        "memory_short",
        "0.0 GiB more in idle models",
    ),
    "an embedding model asked to chat": (node("a", disk=(EMBEDDER,)), ask("m"), "capability", "needs completion"),
    "an old engine's embedding model asked to chat": (
        node("a", disk=(on_disk("m", family="nomic-bert"),)),
        ask("m", kind="generate"),
        "capability",
        "nomic-bert",
    ),
    "an embedding model known from memory only": (
        node("a", loaded=(in_memory("m", family="bert"),)),
        ask("m"),
        "capability",
        "bert",
    ),
    "an image model asked to embed": (
        node("a", disk=(on_disk("m", capabilities=("image",)),)),
        ask("m", kind="embed"),
        "capability",
        "embedding",
    ),
    "no eyes": (node("a", disk=(TALKER,)), ask("m", needs=("tools", "vision")), "capability", "needs vision"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_may_not_serve_gets_its_reason_with_the_numbers(case: str) -> None:
    refused, question, reason, words = REFUSED[case]
    decision = decided(view(refused), question, CLASSIC)
    assert decision.node is None
    assert decision.candidates == ()
    assert [(e.node, e.reason) for e in decision.eliminated] == [("a", reason)]
    assert words in decision.eliminated[0].detail


ADMITTED = {
    "degraded": (node("a", status="degraded", disk=(M,)), ask("m")),
    "in memory only": (node("a", loaded=HOT), ask("m")),
    "critical, but the model is there": (node("a", loaded=HOT, pressure="critical", available=0.1), ask("m")),
    "exactly enough memory": (node("a", disk=(M,), available=10), ask("m")),
    "full of a model that nobody uses": (node("a", disk=(M,), available=4, loaded=(in_memory("x", 20),)), ask("m")),
    "unknown size": (node("a", disk=(on_disk("m", 0),), available=1), ask("m")),
    "unknown memory": (node("a", disk=(M,), available=None), ask("m")),
    "unknown capabilities": (node("a", disk=(M,)), ask("m", needs=("vision",))),
    "a chat model asked to embed": (node("a", disk=(TALKER,)), ask("m", kind="embed")),
    "unknown capabilities, asked to embed": (node("a", disk=(M,)), ask("m", kind="embed")),
    "an old engine's embedding model": (node("a", disk=(on_disk("m", family="bert"),)), ask("m", kind="embed")),
    "both kinds": (node("a", disk=(on_disk("m", capabilities=("completion", "embedding")),)), ask("m")),
    "what it needs": (node("a", disk=(TALKER,)), ask("m", needs=("tools",))),
    "available enough": (node("a", disk=(M,), capacity=Capacity(availability=0.2)), ask("m")),
    "no ceiling": (node("a", disk=(M,), capacity=Capacity(ceiling_gib=0)), ask("m")),
}


@pytest.mark.parametrize("case", ADMITTED)
def test_what_is_unknown_or_merely_unpleasant_refuses_nobody(case: str) -> None:
    admitted, question = ADMITTED[case]
    decision = decided(view(admitted), question, CLASSIC)
    assert decision.node == "a", decision.eliminated


def test_the_ceiling_counts_for_room_that_eviction_would_make() -> None:
    full = node("a", disk=(M,), available=4, loaded=(in_memory("x", 20),), capacity=Capacity(ceiling_gib=9))
    assert decided(view(full), ask("m"), CLASSIC).eliminated[0].reason == "memory_short"


def test_sizes_in_bytes_meet_memory_in_gib() -> None:
    """19.9 GB are 18.5 GiB: a router that mixes the units refuses a machine that is large enough."""
    fits = node("a", disk=(on_disk("m", 19.9),), available=18.6)
    assert decided(view(fits), ask("m"), CLASSIC).node == "a"


def test_a_cost_measured_elsewhere_refuses_and_the_smallest_measurement_counts() -> None:
    cold = node("cold", disk=(on_disk("m", 5),), available=12)
    costly = node("costly", loaded=(in_memory("m", 20),))
    cheap = node("cheap", loaded=(in_memory("m", 12),))
    refused = decided(view(cold, costly), ask("m"), CLASSIC)
    assert [e.reason for e in refused.eliminated] == ["memory_short"]
    assert decided(view(cold, costly, cheap), ask("m"), CLASSIC).eliminated == ()


def test_the_decision_tells_winner_runner_up_and_margin() -> None:
    fleet = view(*(node(name, disk=(M,)) for name in "abc"))
    decision = decided(fleet, ask("m"), Ranked({"a": 1.5, "b": 4.0, "c": 3.0}))
    assert (decision.node, decision.score, decision.runner_up, decision.margin) == ("b", 4.0, "c", 1.0)
    assert [candidate.node for candidate in decision.candidates] == ["b", "c", "a"]
    assert decision.propensity == 1.0


def test_an_only_candidate_has_no_runner_up() -> None:
    decision = decided(view(node("a", disk=(M,)), node("b")), ask("m"), CLASSIC)
    assert (decision.node, decision.runner_up, decision.margin, decision.propensity) == ("a", None, None, 1.0)
    assert [e.node for e in decision.eliminated] == ["b"]


def test_equals_are_drawn_with_equal_probability() -> None:
    fleet = view(*(node(name, disk=(M,)) for name in "abcd"))
    totals = {"a": 1.0, "b": 1.0 + 5e-10, "c": 1.0, "d": 0.9}
    won = Counter(decided(fleet, ask("m"), Ranked(totals), seed=seed).node for seed in range(3000))
    second = Counter(decided(fleet, ask("m"), Ranked(totals), seed=seed).runner_up for seed in range(3000))
    for drawn in (won, second):
        assert drawn.keys() == {"a", "b", "c"}
        assert min(drawn.values()) > 900
    assert decided(fleet, ask("m"), Ranked(totals)).propensity == pytest.approx(1 / 3)
    assert decided(fleet, ask("m"), Ranked(totals, propensity=0.5)).propensity == pytest.approx(1 / 6)


def test_an_explored_candidate_is_not_pushed_back_by_the_draw() -> None:
    class Exploring(Ranked):
        def rank(self, view: View, ask: Ask, admitted: list[Node], chance: Chance, *, now: int) -> Ranking:
            ranking = super().rank(view, ask, admitted, chance, now=now)
            return Ranking(candidates=ranking.candidates[::-1], propensity=0.05)

    fleet = view(*(node(name, disk=(M,)) for name in "abc"))
    decision = decided(fleet, ask("m"), Exploring({"a": 1.0, "b": 3.0, "c": 3.0}))
    assert (decision.node, decision.propensity) == ("a", 0.05)


@given(order=st.permutations("abcdef"), seed=st.integers(0, 2**64 - 1))
def test_the_order_in_which_nodes_registered_changes_nothing(order: list[str], seed: int) -> None:
    nodes = {name: node(name, disk=(M,), loaded=HOT if name in "ace" else ()) for name in "abcdef"}
    registered = decided(view(*(nodes[name] for name in order)), ask("m"), CLASSIC, seed=seed)
    assert registered == decided(view(*nodes.values()), ask("m"), CLASSIC, seed=seed)


def test_a_seed_makes_the_same_draw_for_ever() -> None:
    fleet = view(*(node(name, disk=(M,)) for name in "abcd"))
    drawn = "".join(str(decided(fleet, ask("m"), CLASSIC, seed=seed).node) for seed in range(16))
    assert drawn == "ccacaabbacaabbba"
