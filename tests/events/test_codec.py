"""What was written once must be readable for ever, bit for bit, and what cannot be read must say what it is."""

import math
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.codec import CODEC, JSON, MESSAGEPACK, Codec, tag
from events.store import StoreError, UnknownEvent
from events.types import Candidate, Event, NodeReported, PolicyPromoted, RequestReceived, RouteChosen
from tests.events.every_event import EVENTS, any_event, event_of


class Renamed(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="test.renamed"):
    """An event in its third version: first it had milliseconds, then another name for them, now seconds."""

    schema: ClassVar[int] = 3
    telemetry: ClassVar[bool] = False

    elapsed_s: float


def ms_to_elapsed_ms(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": fields["type"], "elapsed_ms": fields["ms"]}


def elapsed_ms_to_s(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": fields["type"], "elapsed_s": fields["elapsed_ms"] / 1000}


UPCASTS = {("test.renamed", 1): ms_to_elapsed_ms, ("test.renamed", 2): elapsed_ms_to_s}


def same(one: Event, other: Event) -> bool:
    """Equality that also holds for NaN and tells 0.0 from -0.0."""
    return msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other) and one.__class__ is other.__class__


@pytest.mark.parametrize("cls", EVENTS, ids=tag)
def test_every_event_survives_storage(cls: type[Event]) -> None:
    @given(event_of(cls))
    def check(event: Event) -> None:
        codec, payload = CODEC.encode(event)
        assert same(CODEC.decode(payload, codec, event.schema), event)

    check()


@given(any_event())
def test_every_event_survives_both_codecs(event: Event) -> None:
    assert same(CODEC.decode(msgspec.msgpack.encode(event), MESSAGEPACK), event)
    assert same(CODEC.decode(CODEC.spell(event), JSON), event)


def test_no_two_events_share_a_tag() -> None:
    assert len({tag(cls) for cls in EVENTS}) == len(EVENTS)


def test_decisions_are_packed_and_small_events_are_readable() -> None:
    chosen = RouteChosen(request="r", attempt=1, model="m", policy="p", policy_hash="h", node=None)
    assert CODEC.encode(chosen)[0] == MESSAGEPACK
    codec, payload = CODEC.encode(NodeReported(node="ash", cpu_pct=12.5))
    assert codec == JSON
    assert bytes(payload) == b'{"type":"node.reported","node":"ash","cpu_pct":12.5}'


@given(st.sampled_from([math.inf, -math.inf, math.nan]))
def test_a_float_that_json_cannot_say_is_kept(value: float) -> None:
    event = NodeReported(node="null", cpu_pct=value)
    codec, payload = CODEC.encode(event)
    assert codec == MESSAGEPACK
    assert same(CODEC.decode(payload, codec), event)
    points = RouteChosen(
        request="r",
        attempt=1,
        model="m",
        policy="p",
        policy_hash="h",
        node=None,
        candidates=(Candidate(node="a", total=value, points=(value,), reading_age_ms=1),),
    )
    assert same(CODEC.decode(CODEC.spell(points)), points)


def test_the_word_null_in_a_text_packs_nothing() -> None:
    assert CODEC.encode(NodeReported(node="null"))[0] == JSON


def test_free_form_parameters_are_kept() -> None:
    event = PolicyPromoted(policy="p", policy_hash="h", parameters={"weights": [1, 2.5, None, {"a": "b"}]})
    codec, payload = CODEC.encode(event)
    assert CODEC.decode(payload, codec) == event


@pytest.mark.parametrize(
    ("schema", "payload"),
    [
        (1, b'{"type":"test.renamed","ms":1500}'),
        (2, b'{"type":"test.renamed","elapsed_ms":1500}'),
        (3, b'{"type":"test.renamed","elapsed_s":1.5}'),
    ],
)
def test_old_versions_are_brought_up_to_date(schema: int, payload: bytes) -> None:
    codec = Codec(Renamed, UPCASTS)
    assert codec.decode(payload, JSON, schema) == Renamed(elapsed_s=1.5)
    packed = msgspec.msgpack.encode(msgspec.json.decode(payload))
    assert codec.decode(packed, MESSAGEPACK, schema) == Renamed(elapsed_s=1.5)


def test_an_old_version_that_looks_like_the_new_one_is_upcast_too() -> None:
    def doubled(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "elapsed_s": fields["elapsed_s"] * 2}

    codec = Codec(Renamed, {("test.renamed", 1): doubled, ("test.renamed", 2): doubled})
    assert codec.decode(b'{"type":"test.renamed","elapsed_s":1.0}', JSON, 1) == Renamed(elapsed_s=4.0)


def test_a_missing_upcast_is_noticed_before_anything_is_read() -> None:
    with pytest.raises(AssertionError, match=r"no upcast for test\.renamed version \[1\]"):
        Codec(Renamed, {("test.renamed", 2): elapsed_ms_to_s})


def test_an_unknown_event_is_named() -> None:
    with pytest.raises(UnknownEvent, match=r"'node\.teleported'.*later release"):
        CODEC.decode(b'{"type":"node.teleported","node":"ash"}')


def test_an_event_of_a_later_version_is_not_guessed_at() -> None:
    with pytest.raises(UnknownEvent, match=r"version 2 .*'node\.reported'.*up to 1"):
        CODEC.decode(b'{"type":"node.reported","node":"ash"}', JSON, 2)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"type":"node.reported"}',
        b'{"type":"node.reported","node":7}',
    ],
)
def test_what_is_no_event_is_refused(payload: bytes) -> None:
    with pytest.raises(StoreError, match="decoded"):
        CODEC.decode(payload)


def test_a_version_that_never_was_is_refused() -> None:
    with pytest.raises(StoreError, match="never was"):
        CODEC.decode(b'{"type":"node.reported","node":"ash"}', JSON, 0)


def test_fields_of_a_later_release_do_no_harm() -> None:
    payload = b'{"type":"request.received","request":"r","kind":"chat","dialect":"ollama","path":"/","model":"m",'
    event = CODEC.decode(payload + b'"asked":"m","streaming":true,"mood":"good"}')
    assert isinstance(event, RequestReceived)
