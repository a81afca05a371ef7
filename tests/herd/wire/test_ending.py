"""Watching an answer go by: the same end is seen however the bytes were cut, and nothing is kept that need not be."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.types import Dialect, Kind
from herd.wire.dialect import MESSAGE_MAX
from herd.wire.ending import (
    EVENTS_TAIL_BYTES,
    VECTORS_EDGE_BYTES,
    WHOLE_MAX_BYTES,
    Ending,
    Watch,
    is_answer,
    whole,
)
from tests.herd.wire.transcript import cut, places, transcript

STREAMS: dict[str, tuple[Dialect, Kind, Ending]] = {
    "ollama/chat.ndjson": (
        "ollama",
        "chat",
        Ending(
            finished=True, prompt_tokens=12, completion_tokens=6, finish_reason="length",
            load_ms=22, prompt_ms=26, generate_ms=102,
        ),
    ),
    "ollama/generate.ndjson": (
        "ollama",
        "generate",
        Ending(
            finished=True, prompt_tokens=10, completion_tokens=6, finish_reason="length",
            load_ms=19, prompt_ms=64, generate_ms=99,
        ),
    ),
    "ollama/load.json": ("ollama", "generate", Ending(finished=True, completion_tokens=0, finish_reason="load")),
    "ollama/v1_chat.sse": ("openai", "chat", Ending(finished=True, finish_reason="length")),
    "ollama/v1_chat_usage.sse": (
        "openai",
        "chat",
        Ending(finished=True, prompt_tokens=12, completion_tokens=5, finish_reason="length"),
    ),
    "ollama/v1_completions.sse": (
        "openai",
        "generate",
        Ending(finished=True, prompt_tokens=10, completion_tokens=4, finish_reason="length"),
    ),
    "llama.cpp/chat.sse": (
        "openai",
        "chat",
        Ending(
            finished=True, prompt_tokens=33, completion_tokens=12, finish_reason="length",
            prompt_ms=193, generate_ms=169,
        ),
    ),
    "llama.cpp/tool.sse": (
        "openai",
        "chat",
        Ending(
            finished=True, prompt_tokens=358, completion_tokens=31, finish_reason="tool_calls",
            prompt_ms=4959, generate_ms=4403,
        ),
    ),
    "llama.cpp/logprobs.sse": (
        "openai",
        "chat",
        Ending(
            finished=True, prompt_tokens=31, completion_tokens=2, finish_reason="length", prompt_ms=11, generate_ms=12
        ),
    ),
    "llama.cpp/completion.sse": (
        "openai",
        "generate",
        Ending(
            finished=True, prompt_tokens=3, completion_tokens=8, finish_reason="length", prompt_ms=35, generate_ms=102
        ),
    ),
}  # fmt: skip

WHOLES: dict[str, tuple[Dialect, Kind, Ending]] = {
    "ollama/chat.json": (
        "ollama",
        "chat",
        Ending(
            finished=True, prompt_tokens=12, completion_tokens=6, finish_reason="length",
            load_ms=656, prompt_ms=141, generate_ms=119,
        ),
    ),
    "ollama/unload.json": ("ollama", "generate", Ending(finished=True, completion_tokens=0, finish_reason="unload")),
    "ollama/v1_chat.json": (
        "openai",
        "chat",
        Ending(finished=True, prompt_tokens=12, completion_tokens=5, finish_reason="length"),
    ),
    "llama.cpp/chat.json": (
        "openai",
        "chat",
        Ending(
            finished=True, prompt_tokens=33, completion_tokens=24, finish_reason="stop", prompt_ms=14, generate_ms=331
        ),
    ),
    "ollama/embed.json": ("ollama", "embed", Ending(finished=True, prompt_tokens=2, load_ms=22)),
    "ollama/v1_embed.json": ("openai", "embed", Ending(finished=True, prompt_tokens=1)),
    "llama.cpp/embeddings.json": ("openai", "embed", Ending(finished=True, prompt_tokens=3)),
}  # fmt: skip

ALL = [(name, True, *facts) for name, facts in STREAMS.items()] + [
    (name, False, *facts) for name, facts in WHOLES.items()
]


def watched(dialect: Dialect, kind: Kind, *chunks: bytes, streaming: bool = True) -> Ending:
    watch = Watch(dialect, kind, streaming=streaming)
    for chunk in chunks:
        watch.feed(chunk)
    return watch.ending()


def item(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


@pytest.mark.parametrize(("name", "streaming", "dialect", "kind", "ending"), ALL, ids=lambda value: str(value)[:30])
@given(at=places)
def test_the_end_of_a_real_answer_is_read_however_it_is_cut(
    name: str, streaming: bool, dialect: Dialect, kind: Kind, ending: Ending, at: list[int]
) -> None:
    data = transcript(name)
    watch = Watch(dialect, kind, streaming=streaming)
    for chunk in cut(data, at):
        watch.feed(chunk)
    assert watch.ending() == ending
    assert watch.bytes == len(data)


@pytest.mark.parametrize(("name", "streaming", "dialect", "kind", "ending"), ALL, ids=lambda value: str(value)[:30])
def test_an_answer_cut_short_anywhere_is_not_finished(
    name: str, streaming: bool, dialect: Dialect, kind: Kind, ending: Ending
) -> None:
    data = transcript(name).rstrip()
    for end in range(0, len(data) - 1, 7):
        assert not watched(dialect, kind, data[:end], streaming=streaming).finished, data[:end][-80:]


def test_no_bytes_have_no_end() -> None:
    for dialect in ("ollama", "openai"):
        for kind in ("chat", "generate", "embed"):
            for streaming in (True, False):
                assert watched(dialect, kind, streaming=streaming) == Ending()


def test_a_last_line_of_megabytes_is_read_whole() -> None:
    last = item(model="m", response="", done=True, context=list(range(200_000)), eval_count=7)
    chunks = [item(response="a", done=False), *(last[start : start + 4096] for start in range(0, len(last), 4096))]
    assert watched("ollama", "generate", *chunks).completion_tokens == 7


def test_blank_lines_after_the_last_one_change_nothing() -> None:
    assert watched("ollama", "chat", item(done=True, eval_count=1), b"\n", b"\r\n", b"\n\n").completion_tokens == 1
    assert watched("ollama", "chat", b'{"done":true,', b'"eval_count":1}\n\n').completion_tokens == 1


def test_a_finished_answer_without_a_count_is_empty_because_ollama_leaves_zeros_out() -> None:
    assert watched("ollama", "chat", item(message={}, done=True, done_reason="stop")).empty


def test_a_load_is_not_an_empty_answer() -> None:
    assert not watched("ollama", "generate", transcript("ollama/load.json")).empty
    assert not watched("ollama", "generate", transcript("ollama/unload.json"), streaming=False).empty


def test_an_openai_answer_is_empty_only_if_its_usage_says_so() -> None:
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}\n\n'
    assert watched("openai", "chat", end, usage, b"data: [DONE]\n\n").empty
    assert not watched("openai", "chat", end, b"data: [DONE]\n\n").empty


def test_embeddings_are_never_empty_answers() -> None:
    assert not watched("ollama", "embed", b'{"model":"m","embeddings":[]}', streaming=False).empty


def test_a_native_error_line_is_kept_in_its_words() -> None:
    ending = watched("ollama", "chat", item(message={"content": "a"}, done=False), item(error="out of memory"))
    assert (ending.finished, ending.error) == (False, "out of memory")


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"code":500,"message":"out of memory","type":"server_error"}}\n\n',
        b'data: {"error":"out of memory"}\n\n',
        b'error: {"code":500,"message":"out of memory","type":"server_error"}\n\n',
    ],
)
def test_an_error_event_is_kept_in_its_words(event: bytes) -> None:
    ending = watched("openai", "chat", b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', event)
    assert (ending.finished, ending.error) == (False, "out of memory")


def test_an_error_text_is_bounded() -> None:
    assert len(watched("ollama", "chat", item(error="x" * 100_000)).error) < 1000


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_a_reason_of_megabytes_is_bounded(dialect: Dialect) -> None:
    reason = "x" * 2_000_000
    answer = item(done=True, done_reason=reason, choices=[{"finish_reason": reason}])
    read = whole(dialect, "chat", answer)
    assert read is not None
    assert 0 < len(read.finish_reason) <= MESSAGE_MAX + 1


@pytest.mark.parametrize(("name", "streaming", "dialect", "kind", "ending"), ALL, ids=lambda value: str(value)[:30])
def test_a_whole_answer_is_read_in_one_look(
    name: str, streaming: bool, dialect: Dialect, kind: Kind, ending: Ending
) -> None:
    assert whole(dialect, kind, transcript(name)) == (None if streaming and name != "ollama/load.json" else ending)


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
@pytest.mark.parametrize("kind", ["chat", "generate", "embed"])
@pytest.mark.parametrize(
    "body", [b"", b" ", b"[]", b"null", b"{", b"{} {}", b"<html>", b'"a"', b"\xff", b"[" * 100_000]
)
def test_what_is_no_object_is_no_whole_answer(dialect: Dialect, kind: Kind, body: bytes) -> None:
    assert whole(dialect, kind, body) is None


@pytest.mark.parametrize("body", [b"{}", b' {"a":1}\n', b'{"choices":5}', b'{"usage":[]}', b'{"error":null}'])
def test_an_object_of_another_shape_is_a_whole_answer_without_an_end(body: bytes) -> None:
    for dialect in ("ollama", "openai"):
        assert whole(dialect, "chat", body) in (Ending(), Ending(finished=False))


@pytest.mark.parametrize(
    "content_type",
    [
        b"", b"application/json", b"application/json; charset=utf-8", b"application/x-ndjson", b"text/event-stream",
        b"text/event-stream; charset=utf-8", b"Application/JSON", b"TEXT/EVENT-STREAM",
    ],
)  # fmt: skip
def test_what_inference_servers_send_is_an_answer(content_type: bytes) -> None:
    assert is_answer(content_type)
    assert is_answer(content_type, [(b"content-length", b"5"), (b"content-encoding", b"Identity")])


@pytest.mark.parametrize("content_type", [b"text/html", b"text/html; charset=utf-8", b"text/plain", b"image/png", b"x"])
def test_a_login_page_is_no_answer(content_type: bytes) -> None:
    assert not is_answer(content_type)


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"zstd", b"identity, gzip", b""])
def test_what_is_compressed_is_no_answer(encoding: bytes) -> None:
    assert not is_answer(b"application/json", [(b"content-encoding", encoding)])


pieces = st.lists(
    st.sampled_from([
        b'{"done":true,"eval_count":1}', b'{"done":true,"eval_count":2}', b'{"done":false}', b'{"done":true,',
        b'"a":1}', b"\n", b"\n", b"\r\n", b"\n\n", b" ", b"\t", b"\x0b", b"\x00", b"\n  ", b"\n\x00", b"",
    ]),
    max_size=12,
)  # fmt: skip


@given(chunks=pieces, at=places)
def test_lines_in_any_chunks_end_with_the_last_one_that_says_something(chunks: list[bytes], at: list[int]) -> None:
    data = b"".join(chunks)
    expected = whole("ollama", "chat", data.strip(b" \t\r\n").rpartition(b"\n")[2]) or Ending()
    assert watched("ollama", "chat", *chunks) == expected
    assert watched("ollama", "chat", *cut(data, at)) == expected


@given(chunks=st.lists(st.binary(max_size=5), max_size=6), streaming=st.booleans())
@pytest.mark.parametrize("dialect", ["ollama", "openai"])
@pytest.mark.parametrize("kind", ["chat", "embed"])
def test_every_watch_counts_bytes_and_knows_where_the_line_stands(
    dialect: Dialect, kind: Kind, chunks: list[bytes], streaming: bool
) -> None:
    watch = Watch(dialect, kind, streaming=streaming)
    for chunk in chunks:
        watch.feed(chunk)
    data = b"".join(chunks)
    assert (watch.bytes, watch.mid_line) == (len(data), bool(data) and not data.endswith(b"\n"))


def test_the_last_usage_counts_where_every_chunk_has_one() -> None:
    zero = b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n'
    real = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\n'
    ending = watched("openai", "generate", zero, zero, real, b"data: [DONE]\n\n")
    assert (ending.prompt_tokens, ending.completion_tokens) == (4, 2)


def test_words_of_the_model_are_not_taken_for_the_end() -> None:
    text = 'data: [DONE]\n\n{"done":true,"eval_count":9}'
    assert not watched("openai", "chat", b"data: " + item(choices=[{"delta": {"content": text}}])).finished
    assert not watched("ollama", "chat", item(message={"content": text}, done=False)).finished


@pytest.mark.parametrize("nonsense", [-1, 10**30, "7", None, True, [1], {"a": 1}, 1e300])
def test_senseless_counters_are_none(nonsense: Any) -> None:
    ending = watched("ollama", "chat", item(done=True, prompt_eval_count=nonsense, load_duration=nonsense))
    assert (ending.finished, ending.prompt_tokens, ending.load_ms) == (True, None, None)


def test_a_long_stream_is_not_kept() -> None:
    for dialect in ("ollama", "openai"):
        watch = Watch(dialect, "chat", streaming=True)
        chunk = b"data: " + item(choices=[{"delta": {"content": "word"}}], message={"content": "word"}) + b"\n"
        references = sys.getrefcount(chunk)
        copies = [bytes(bytearray(chunk)) for _ in range(20_000)]
        for copy in copies:
            watch.feed(copy)
        watch.feed(chunk)
        assert sys.getrefcount(chunk) == references + 1
        kept = sum(sys.getrefcount(copy) > 3 for copy in copies)
        assert kept * len(chunk) <= 2 * EVENTS_TAIL_BYTES


def test_a_line_beyond_all_limits_is_let_go_and_its_end_is_unknown() -> None:
    watch = Watch("ollama", "chat", streaming=True)
    block = b"x" * (1024 * 1024)
    for _ in range(WHOLE_MAX_BYTES // len(block) + 2):
        watch.feed(block)
    watch.feed(b'"done":true}\n')
    assert watch.ending() == Ending()
    watch.feed(item(done=True, eval_count=3))
    assert watch.ending().completion_tokens == 3


def test_lines_that_never_end_with_their_chunk_are_not_gathered() -> None:
    watch = Watch("ollama", "chat", streaming=True)
    block = b'"}\n{"x":"' + b"x" * (1024 * 1024)
    for _ in range(WHOLE_MAX_BYTES // len(block) + 2):
        watch.feed(block)
    watch.feed(b'","done":true,"eval_count":4}\n')
    assert watch.ending().completion_tokens == 4


def test_small_embeddings_are_read_whole_so_that_none_seems_finished_too_early() -> None:
    assert not watched("openai", "embed", b'{"data":[{"embedding":[1]}', streaming=False).finished
    assert watched("openai", "embed", b'{"model":"a[b","data":[{"embedding":[1]}]}', streaming=False).finished


def test_embeddings_of_any_size_are_read_from_both_ends() -> None:
    vectors = [[0.125] * 512 for _ in range(200)]
    native = item(model="m", embeddings=vectors, total_duration=5, prompt_eval_count=77)
    assert len(native) > 10 * VECTORS_EDGE_BYTES
    first = b'{"usage":{"prompt_tokens":77},"data":' + json.dumps([{"embedding": v} for v in vectors]).encode() + b"}"
    last = b'{"data":' + json.dumps([{"embedding": v} for v in vectors]).encode() + b',"usage":{"prompt_tokens":77}}'
    whole: list[tuple[Dialect, bytes]] = [("ollama", native), ("openai", first), ("openai", last)]
    for dialect, data in whole:
        chunks = [data[start : start + 1000] for start in range(0, len(data), 1000)]
        ending = watched(dialect, "embed", *chunks, streaming=False)
        assert (ending.finished, ending.prompt_tokens) == (True, 77)
        assert not watched(dialect, "embed", data[: len(data) // 2], streaming=False).finished


def test_whether_the_answer_stopped_inside_a_line_is_known() -> None:
    watch = Watch("ollama", "chat", streaming=True)
    assert not watch.mid_line
    watch.feed(b'{"a":1}\n{"b"')
    assert watch.mid_line
    watch.feed(b":1}\n")
    watch.feed(b"")
    assert not watch.mid_line


@given(
    dialect=st.sampled_from(["ollama", "openai"]),
    kind=st.sampled_from(["chat", "generate", "embed"]),
    streaming=st.booleans(),
    data=st.binary(max_size=300)
    | st.sampled_from([b"data: [DONE]", b"data: 5\n", b"null", b"[]", b"[[]]", b'{"choices":[]}']),
    at=places,
)
def test_no_bytes_make_the_watch_fail(
    dialect: Dialect, kind: Kind, streaming: bool, data: bytes, at: list[int]
) -> None:
    watched(dialect, kind, *cut(data, at), streaming=streaming)


def test_an_answer_without_a_bottom_is_no_answer() -> None:
    assert whole("ollama", "chat", b'{"a":' + b"[" * 200_000) is None
    assert whole("ollama", "chat", b'{"a":[]}') == Ending()
