"""How long each model takes on each node: what a waiting request can expect."""

from array import array
from bisect import bisect_left, insort
from collections.abc import Callable
from struct import Struct
from typing import Any

import msgspec
from immutables import Map
from msgspec.structs import replace

from events.recorded import Recorded
from events.types import Event, RequestAttemptFailed, RequestDispatched, RequestFinished, RequestFirstToken
from projections.projection import Projection

#: Completed requests that a percentile looks at, per node and model.
OBSERVATIONS_MAX = 500
#: An observation this much older than the newest of its pair is forgotten, seconds. Measured against the pair's own
#: newest and not against the clock: a model that nobody asked for during a month keeps what was last known of it.
OBSERVATION_AGE_MAX_S = 7 * 24 * 3600
#: What is left of a mean's past after each new observation: the newest 500 have about two thirds of the weight.
MEAN_KEEPS = 1.0 - 1.0 / OBSERVATIONS_MAX
#: How requests end that only load a model or let it go: they answer nothing, so they tell nothing of answers.
WITHOUT_ANSWER = frozenset({"load", "unload"})
#: Engines report some milliseconds of loading for a model that was in memory already; from here on it was a load.
LOAD_MIN_MS = 250

_U32 = Struct("I")
_US_MAX = 0xFFFF_FFFF


class Mean(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A running mean, weighted, in which older values fade."""

    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float | None:
        """The mean, or None before the first value."""
        return self.total / self.weight if self.weight else None

    def with_value(self, total: float, weight: float = 1.0) -> "Mean":
        """Return the mean with one more value (or a sum of values and their weight)."""
        return Mean(self.total * MEAN_KEEPS + total, self.weight * MEAN_KEEPS + weight)


_NOTHING = Mean()


class Stats(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of one model on one node, from completed requests only.

    Service time is dispatch to ending without the time that the engine spent loading the model: waiting in line is not
    in it, and a cold start does not make the next, warm, request look slow.
    """

    samples: int = 0
    """Completed requests since the beginning of the log."""
    service_p75_ms: float = 0.0
    """Three quarters of the newest observations were at most this long."""
    latency: Mean = _NOTHING
    """Dispatch to ending with everything, milliseconds."""
    first_token: Mean = _NOTHING
    """Dispatch to first byte without loading, milliseconds."""
    load: Mean = _NOTHING
    """Loading the model, milliseconds; only requests that had to wait for it."""
    prompt: Mean = _NOTHING
    """Prompt tokens."""
    completion: Mean = _NOTHING
    """Completion tokens."""
    prompt_speed: Mean = _NOTHING
    """Prompt tokens per millisecond, weighted by time."""
    generate_speed: Mean = _NOTHING
    """Completion tokens per millisecond, weighted by time."""
    seen_s: bytes = b""
    """When each observation was made: unsigned 32-bit seconds since the epoch, oldest first."""
    service_us: bytes = b""
    """Their service times: unsigned 32-bit microseconds, in the same order."""
    sorted_us: bytes = b""
    """The same service times, shortest first."""
    # Packed and not tuples: the newest of 500 replaces the oldest in 2 us instead of 5, and a snapshot of 250 pairs
    # costs a copy of memory instead of 400,000 integers. Byte order is the machine's own: a snapshot is its cache.

    @property
    def latency_mean_ms(self) -> float | None:
        """Dispatch to ending, as a client sees it; None before the first completed request."""
        return self.latency.value

    @property
    def first_token_mean_ms(self) -> float | None:
        """Dispatch to first byte of a loaded model; None where no first byte was seen."""
        return self.first_token.value

    @property
    def load_mean_ms(self) -> float | None:
        """How long loading the model takes; None if it was never loaded for a request."""
        return self.load.value

    @property
    def prompt_tokens_mean(self) -> float | None:
        """Length of prompts; None where the engine does not report it."""
        return self.prompt.value

    @property
    def completion_tokens_mean(self) -> float | None:
        """Length of answers; None where the engine does not report it."""
        return self.completion.value

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """How fast prompts are read; None where the engine does not report it."""
        speed = self.prompt_speed.value
        return None if speed is None else speed * 1000.0

    @property
    def generate_tokens_per_s(self) -> float | None:
        """How fast answers are written, per request; None where the engine does not report it."""
        speed = self.generate_speed.value
        return None if speed is None else speed * 1000.0


class Running(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An attempt on its node."""

    node: str
    model: str
    dispatched_at: int
    first_token_at: int = 0
    """0 = none yet."""


class Latency(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Service times by node and model, as of one position in the log."""

    seq: int = 0
    nodes: dict[str, dict[str, Stats]] = {}
    """By node, then by canonical model name."""
    running: Map[str, Running] = Map()
    """By request."""

    def stats(self, node: str, model: str) -> Stats | None:
        """Return what is known of a model on a node; None before its first completed request there."""
        models = self.nodes.get(node)
        return None if models is None else models.get(model)

    def service_p75_ms(self, node: str, model: str) -> float | None:
        """Return the 75th percentile of service time in milliseconds; None before the first completed request."""
        models = self.nodes.get(node)  # not through `stats`: asked for every busy node at every decision
        known = None if models is None else models.get(model)
        return None if known is None else known.service_p75_ms


def apply(latency: Latency, recorded: Recorded) -> Latency:
    """Fold one event."""
    fold = _FOLDS.get(type(recorded.event))
    return _stepped(latency, recorded) if fold is None else fold(latency, recorded, recorded.event)


def _stepped(latency: Latency, recorded: Recorded) -> Latency:
    return Latency(seq=recorded.seq, nodes=latency.nodes, running=latency.running)


def _dispatched(latency: Latency, recorded: Recorded, event: RequestDispatched) -> Latency:
    running = Running(node=event.node, model=event.model, dispatched_at=recorded.at)
    return Latency(seq=recorded.seq, nodes=latency.nodes, running=latency.running.set(event.request, running))


def _first_token(latency: Latency, recorded: Recorded, event: RequestFirstToken) -> Latency:
    was = latency.running.get(event.request)
    if was is None:
        return _stepped(latency, recorded)
    running = latency.running.set(event.request, replace(was, first_token_at=was.first_token_at or recorded.at))
    return Latency(seq=recorded.seq, nodes=latency.nodes, running=running)


def _attempt_failed(latency: Latency, recorded: Recorded, event: RequestAttemptFailed) -> Latency:
    if event.request not in latency.running:
        return _stepped(latency, recorded)
    return Latency(seq=recorded.seq, nodes=latency.nodes, running=latency.running.delete(event.request))


def _finished(latency: Latency, recorded: Recorded, event: RequestFinished) -> Latency:
    running = latency.running.get(event.request)
    if running is None:
        return _stepped(latency, recorded)
    nodes = latency.nodes
    if event.outcome == "completed" and event.finish_reason not in WITHOUT_ANSWER:
        models = nodes.get(running.node, {})
        stats = _observe(models.get(running.model) or Stats(), running, event, recorded.at)
        nodes = {**nodes, running.node: {**models, running.model: stats}}
    return Latency(seq=recorded.seq, nodes=nodes, running=latency.running.delete(event.request))


def _observe(stats: Stats, running: Running, event: RequestFinished, at: int) -> Stats:
    load_ms = event.load_ms or 0
    latency_ms = (at - running.dispatched_at) / 1e6
    service_us = min(max(0, (at - running.dispatched_at) // 1000 - load_ms * 1000), _US_MAX)
    seen_s, observed_us, sorted_us = _window(stats, at // 1_000_000_000, service_us)
    first_token = stats.first_token
    if running.first_token_at:
        first_token = first_token.with_value(max(0.0, (running.first_token_at - running.dispatched_at) / 1e6 - load_ms))
    return Stats(
        samples=stats.samples + 1,
        service_p75_ms=sorted_us[len(sorted_us) * 3 // 4] / 1000,
        latency=stats.latency.with_value(latency_ms),
        first_token=first_token,
        load=stats.load.with_value(load_ms) if load_ms >= LOAD_MIN_MS else stats.load,
        prompt=_known(stats.prompt, event.prompt_tokens),
        completion=_known(stats.completion, event.completion_tokens),
        prompt_speed=_speed(stats.prompt_speed, event.prompt_tokens, event.prompt_ms),
        generate_speed=_speed(stats.generate_speed, event.completion_tokens, event.generate_ms),
        seen_s=seen_s,
        service_us=observed_us,
        sorted_us=sorted_us.tobytes(),
    )


def _window(stats: Stats, now_s: int, service_us: int) -> tuple[bytes, bytes, "array[int]"]:
    """Let a new observation in, and those go that are too many or too old."""
    seen_s, observed_us, sorted_us = stats.seen_s, stats.service_us, array("I", stats.sorted_us)
    oldest_s = now_s - OBSERVATION_AGE_MAX_S
    gone = _U32.size if len(seen_s) >= OBSERVATIONS_MAX * _U32.size else 0
    while gone < len(seen_s) and _U32.unpack_from(seen_s, gone)[0] < oldest_s:
        gone += _U32.size
    for (old,) in _U32.iter_unpack(observed_us[:gone]):
        del sorted_us[bisect_left(sorted_us, old)]
    insort(sorted_us, service_us)
    return seen_s[gone:] + _U32.pack(now_s), observed_us[gone:] + _U32.pack(service_us), sorted_us


def _known(mean: Mean, value: int | None) -> Mean:
    return mean if value is None else mean.with_value(value)


def _speed(mean: Mean, tokens: int | None, elapsed_ms: int | None) -> Mean:
    return mean.with_value(tokens, elapsed_ms) if tokens and elapsed_ms else mean


_FOLDS: dict[type[Event], Callable[[Latency, Recorded, Any], Latency]] = {
    RequestDispatched: _dispatched,
    RequestFirstToken: _first_token,
    RequestAttemptFailed: _attempt_failed,
    RequestFinished: _finished,
}

#: The events that change what is known; all others only move its position.
FOLDED = frozenset(_FOLDS)

LATENCY = Projection(name="latency", version=2, state=Latency, initial=Latency, apply=apply)
