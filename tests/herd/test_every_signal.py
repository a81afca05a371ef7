"""What every signal owes to whoever adds them up, over any state that a log can lead to."""

from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.types import Capacity, Hardware, Kind, Memory, Model, Resident
from herd.routing import POLICIES
from herd.routing.context import ClassicParameters, Context
from herd.routing.policy import Ask
from herd.routing.signals import SIGNALS
from projections.fleet import Node, Queue, Reading
from tests.herd.fleets import view as known
from tests.herd.fleets import working

PARAMETERS = ClassicParameters()
BOUNDS = {
    "thermal": (0, PARAMETERS.score_model_hot),
    "memory_fit": (0, PARAMETERS.score_memory_fit_max),
    "queue_depth": (-PARAMETERS.score_queue_depth_max_penalty, 0),
    "wait_time": (-PARAMETERS.score_wait_time_max_penalty, 0),
    "role_affinity": (0, 25),
    "availability_trend": (-PARAMETERS.score_availability_trend_max, 0),
    "context_fit": (-PARAMETERS.score_context_fit_max, PARAMETERS.score_context_fit_max),
}
NAMES = ("m:latest", "n:8b")

figures = st.one_of(st.just(0.0), st.floats(-1e300, 1e300, allow_nan=False), st.floats(0, 4096))
sizes = st.one_of(st.just(0), st.integers(-(2**62), 2**62), st.integers(10**8, 10**12))
times = st.integers(0, 2**62)
models = st.dictionaries(st.sampled_from(NAMES), st.builds(Model, name=st.just("m"), size_bytes=sizes), max_size=2)
residents = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(Resident, name=st.just("m"), size_bytes=sizes, context_length=st.integers(-(2**62), 2**62)),
    max_size=2,
)
queues = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(Queue, waiting=st.integers(0, 10**6), in_flight=st.integers(0, 10**6)),
    max_size=2,
)
readings = st.builds(
    Reading,
    at=times,
    memory=st.none() | st.builds(Memory, available_gib=figures),
    capacity=st.none() | st.builds(Capacity, ceiling_gib=figures, availability=figures),
)
hardware = st.builds(Hardware, memory_total_gib=figures, memory_bandwidth_gbps=figures)


def nodes(name: str) -> st.SearchStrategy[Node]:
    return st.builds(
        working,
        name=st.just(name),
        status=st.sampled_from(["online", "offline"]),
        hardware=hardware,
        reading=readings,
        models=models,
        loaded=residents,
        unloaded_at=st.dictionaries(st.sampled_from(NAMES), times, max_size=2),
        queues=queues,
        parallel=st.integers(0, 64),
    )


kinds: st.SearchStrategy[Kind] = st.sampled_from(["chat", "generate", "embed"])
asks = st.builds(
    Ask,
    request=st.just("r"),
    attempt=st.just(1),
    kind=kinds,
    model=st.sampled_from(NAMES),
    tokens=st.integers(-5, 2**62),
)
p75s = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.sampled_from(NAMES)), st.floats(0, 1e12, allow_nan=False), max_size=6
)


@given(fleet=st.tuples(nodes("a"), nodes("b"), nodes("c")), ask=asks, p75_ms=p75s, now=times)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_finite_bounded_and_repeatable(
    name: str, fleet: tuple[Node, ...], ask: Ask, p75_ms: dict[tuple[str, str], float], now: int
) -> None:
    view = known(*fleet, p75_ms=p75_ms)
    signal, (least, most) = SIGNALS[name], BOUNDS[name]
    column = signal(fleet, ask, Context.of(view, ask, PARAMETERS, now))
    assert len(column) == len(fleet)
    for points in column:
        assert isinstance(points, float)
        assert isfinite(points)
        assert least <= points <= most
        assert str(points) != "-0.0"
    assert column == signal(fleet, ask, Context.of(view, ask, PARAMETERS, now))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_explained_and_lives_in_a_file_of_its_name(name: str) -> None:
    signal = SIGNALS[name]
    assert signal.__doc__ is not None
    assert signal.__doc__.startswith("Return ")
    assert signal.__name__ == name
    assert signal.__module__ == f"herd.routing.signals.{name}"


def test_the_names_of_signals_are_permanent() -> None:
    """They are in every log, and users query their traces by them."""
    assert POLICIES["classic"]({}).signals == (
        "thermal", "memory_fit", "queue_depth", "wait_time", "role_affinity", "availability_trend", "context_fit",
    )  # fmt: skip
