"""A body of megabytes: what routing learns of it is nearly the same, and no shape of it costs more than its bytes."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.types import Kind
from herd.errors import BadRequest, HerdError
from herd.wire import ROUTES
from herd.wire.large import OBJECTS_MAX, READ_MAX_BYTES, UNKNOWN_MAX_BYTES, VALUES_MAX, has_too_many_values, measure
from herd.wire.request import Parsed, parse, stripped, tags
from herd.wire.to_openai import request as to_openai

CHAT = "/api/chat"
OPENAI_CHAT = "/v1/chat/completions"
LONG = "word " * 100_000
IMAGE = "A" * 400_000


def body(**fields: Any) -> bytes:
    written = json.dumps({"model": "m", **fields}).encode()
    assert len(written) > READ_MAX_BYTES
    return written


def repeated(head: bytes, item: bytes, tail: bytes, *, size: int = 4_000_000) -> bytes:
    return head + b",".join([item] * (size // (len(item) + 1))) + tail


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
        (CHAT, {"messages": [{"role": "user", "content": LONG * 2, "images": [IMAGE]}]}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 80} for _ in range(2000)]}),
        (CHAT, {"messages": [{"role": "user", "content": "größer\n" * 80_000}]}),
        ("/api/generate", {"prompt": LONG, "system": LONG}),
        ("/api/embed", {"input": LONG}),
        ("/api/embed", {"input": ["word " * 100] * 1000}),
        ("/api/embeddings", {"prompt": LONG}),
        (OPENAI_CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]}),
        ("/v1/completions", {"prompt": [LONG, LONG]}),
        ("/v1/embeddings", {"input": [12345] * 100_000}),
        ("/v1/embeddings", {"input": [[1, 22, 333] * 100] * 1000}),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_length_is_estimated_to_a_tenth(path: str, fields: dict[str, Any], ascii_only: bool) -> None:
    written = json.dumps({"model": "m", **fields}, ensure_ascii=ascii_only).encode()
    assert len(written) > READ_MAX_BYTES
    read = ROUTES[path][1].read(written)
    assert parse(path, written).tokens_estimated == pytest.approx(read.size.tokens, rel=0.1)


def test_everything_but_the_length_is_read_as_ever() -> None:
    written = body(
        messages=[{"content": LONG}], stream=False, options={"num_ctx": 4096, "num_predict": 7},
        metadata={"tags": ["a"]}, fallback_models=["x"], user="al", tools=[{"type": "function"}],
    )  # fmt: skip
    parsed = parse(CHAT, written)
    assert (parsed.model, parsed.asked, parsed.streaming) == ("m:latest", "m", False)
    assert (parsed.num_ctx, parsed.tokens_max, parsed.fallbacks) == (4096, 7, ("x:latest",))
    assert (parsed.needs, tags(parsed), parsed.strip) == (("tools",), ("a", "user:al"), True)
    assert json.loads(stripped(written)).keys() == json.loads(written).keys() - {"metadata", "fallback_models"}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"content": "x", "images": [IMAGE, IMAGE]}]}),
        (CHAT, {"messages": [{"content": "x", "images": [IMAGE]}, {"content": "y", "images": [IMAGE]}]}),
        ("/api/generate", {"prompt": "x", "images": [IMAGE, IMAGE]}),
        (OPENAI_CHAT, {"messages": [{"content": [{"image_url": {"url": IMAGE}}, {"image_url": {"url": IMAGE}}]}]}),
    ],
)
def test_images_are_counted_and_their_bytes_are_no_text(path: str, fields: dict[str, Any]) -> None:
    parsed = parse(path, body(**fields))
    assert parsed.needs == ("vision",)
    assert 300 <= parsed.tokens_estimated <= 320


@pytest.mark.parametrize("images", [[], None])
def test_a_long_text_about_images_needs_no_vision(images: Any) -> None:
    text = LONG + 'the fields "images" and "image_url"'
    messages = [{"content": text, "images": images}]
    assert parse(CHAT, body(messages=messages)).needs == ()
    assert parse(OPENAI_CHAT, body(messages=[{"content": text}])).needs == ()
    assert parse("/api/generate", body(prompt=text, images=images)).needs == ()


def test_tools_of_any_size_are_a_need() -> None:
    assert parse(CHAT, body(messages=[{"content": "x"}], tools=[{"description": LONG}])).needs == ("tools",)


def test_what_makes_a_body_large_may_be_a_question_in_another_case_so_nothing_is_loaded_or_unloaded() -> None:
    parsed = parse(CHAT, body(Messages=[{"content": LONG}], keep_alive=0))
    assert not parsed.is_load
    assert not parsed.is_unload


def test_a_name_that_is_missing_or_a_novel_is_refused_with_a_reason() -> None:
    with pytest.raises(BadRequest, match=r"model is required.* in lower case"):
        parse(CHAT, b'{"Model":"m","messages":[{"content":"' + b"x" * READ_MAX_BYTES + b'"}]}')
    with pytest.raises(BadRequest, match=r"^invalid model name$"):
        parse(CHAT, body(model="m" * READ_MAX_BYTES))


@pytest.mark.parametrize("rest", [b" trailing", b"}", b"\xff"])
@pytest.mark.parametrize("text", [b"x", b"\\ud83d", b"\\uDE00", b"\xff", b"\\\\ud800"])
def test_go_reads_it_and_so_does_the_router(text: bytes, rest: bytes) -> None:
    written = b'{"model":"m","metadata":1,"messages":[{"content":"' + text * READ_MAX_BYTES + b'"}]}' + rest
    parsed = parse(CHAT, written)
    assert (parsed.asked, parsed.tokens_estimated > 1000) == ("m", True)
    assert not parsed.strip  # the fields of what is not strict JSON cannot be taken out; a node ignores them


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b'{"model":"m","messages":[{"content":"' + b"x" * READ_MAX_BYTES, "unexpected EOF"),
        (b'{"model":"m","x":' + b"[" * READ_MAX_BYTES, "exceeded max depth"),
        (b'{"model":"m","x":' + b" " * READ_MAX_BYTES + b"y}", "invalid JSON"),
        (b"[" + b"1," * READ_MAX_BYTES + b"1]", "the body must be an object"),
        (b" " * READ_MAX_BYTES * 2, "missing request body"),
        (b"\x1f\x8b" + b"\x00" * READ_MAX_BYTES, "compressed"),
        (b"\x28\xb5\x2f\xfd" + b"\x00" * READ_MAX_BYTES, "compressed"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(written: bytes, text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        parse(CHAT, written)


def test_a_flood_of_keys_is_passed_on_as_it_is() -> None:
    keys = b",".join(b'"%d":1' % number for number in range(UNKNOWN_MAX_BYTES // 4))
    assert not parse(CHAT, b'{"model":"m","metadata":1,"messages":[{}],' + keys + b"}").strip


WEAPONS = {
    "messages": repeated(b'{"model":"m","messages":[', b"{}", b"]}"),
    "nothings": repeated(b'{"model":"m","messages":[', b"null", b"]}"),
    "messages with images": repeated(b'{"model":"m","messages":[', b'{"images":[1]}', b"]}"),
    "images": repeated(b'{"model":"m","messages":[{"content":"x","images":[', b'""', b"]}]}"),
    "parts": repeated(b'{"model":"m","messages":[{"content":[', b"{}", b"]}]}"),
    "image parts": repeated(b'{"model":"m","messages":[{"content":[', b'{"image_url":1}', b"]}]}"),
    "tools": repeated(b'{"model":"m","messages":[{}],"tools":[', b"{}", b"]}"),
    "metadata": repeated(b'{"model":"m","metadata":{"tags":[', b"[[]]", b"]}}"),
    "fallbacks": repeated(b'{"model":"m","fallback_models":[', b'""', b"]}"),
    "user": repeated(b'{"model":"m","user":[', b"{}", b"]}"),
    "options": repeated(b'{"model":"m","options":{"num_ctx":[', b"{}", b"]}}"),
    "keep_alive": b'{"model":"m","keep_alive":"' + b"0" * 4_000_000 + b'"}',
    "input": repeated(b'{"model":"m","input":[', b"[]", b"]}"),
    "prompt": repeated(b'{"model":"m","prompt":[', b"[]", b"]}"),
    "another case": repeated(b'{"Model":"m","x":[', b"{}", b"]}"),
    "rest": repeated(b'{"model":"m","x":[', b"{}", b"]} x"),
    "no end": repeated(b'{"model":"m","x":[', b"{}", b""),
    "emoji": b'{"model":"m","messages":[{"content":"' + "\N{GRINNING FACE}".encode() * 1_000_000 + b'"}]}',
}


@pytest.mark.parametrize("path", sorted(ROUTES))
@pytest.mark.parametrize("weapon", WEAPONS)
def test_no_shape_of_a_body_takes_more_memory_than_twice_its_size(weapon: str, path: str) -> None:
    written = WEAPONS[weapon]
    tracemalloc.start()
    try:
        parse(path, written)
    except HerdError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * len(written)


def _parsed(written: bytes) -> Parsed:
    return parse(CHAT, written)


def test_a_translation_looks_at_every_value_and_so_refuses_a_flood_of_them() -> None:
    flood = repeated(b'{"model":"m","messages":[', b'{"content":"a"}', b"]}", size=6 * VALUES_MAX)
    with pytest.raises(BadRequest, match="more than 500000 values"):
        to_openai(_parsed(flood), flood, "m")
    images = repeated(b'{"model":"m","messages":[{"content":"x","images":[', b"1", b"]}]}")
    with pytest.raises(BadRequest, match="up to 10000 images"):
        to_openai(_parsed(images), images, "m")


def test_a_long_text_full_of_braces_and_quotes_is_one_value() -> None:
    written = body(messages=[{"content": '{"a": [' * VALUES_MAX}])
    assert not has_too_many_values(written)
    sent = json.loads(to_openai(_parsed(written), written, "m").body)
    assert sent["messages"][0]["content"] == '{"a": [' * VALUES_MAX


@pytest.mark.parametrize("nothing", ["null", " null", "[]", "[ ]", " [ \n]"])
def test_code_full_of_braces_next_to_no_image_needs_no_vision(nothing: str) -> None:
    written = body(messages=[{"content": "{}" * OBJECTS_MAX * 8, "images": None}])
    assert parse(CHAT, written.replace(b" null", nothing.encode())).needs == ()
    parts = body(messages=[{"content": [{"text": "{}" * OBJECTS_MAX * 8, "image_url": None}]}])
    assert parse(OPENAI_CHAT, parts).needs == ()


def test_code_full_of_braces_next_to_an_image_still_needs_vision() -> None:
    written = body(messages=[{"content": "{}" * OBJECTS_MAX, "images": [IMAGE]}])
    assert parse(CHAT, written).needs == ("vision",)


kinds: st.SearchStrategy[Kind] = st.sampled_from(["chat", "generate", "embed"])


@settings(max_examples=300)
@given(kind=kinds, written=st.binary(max_size=200), at=st.integers(min_value=0), new=st.binary(max_size=3))
def test_no_bytes_raise_anything_but_our_own_errors(kind: Kind, written: bytes, at: int, new: bytes) -> None:
    whole = b'{"model":"m","messages":[{"content":"\\ud83d","images":["a"]}],"input":["a"],"prompt":"a"} x'
    place = at % (len(whole) + 1)
    for damaged in (written, whole[:place] + new + whole[place:]):
        try:
            measure(kind, damaged)
        except HerdError:
            continue
