"""A native client in front of an OpenAI-compatible node sees what Ollama would have said, however the bytes arrive."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.errors import BadRequest, HerdError, NodeUnreachable
from herd.wire.ending import Ending, Watch
from herd.wire.from_openai import LINE_MAX_BYTES
from herd.wire.request import Parsed, parse
from herd.wire.translate import TRANSLATIONS, Sending
from tests.herd.wire.transcript import cut, places, transcript

NATIVE = TRANSLATIONS["ollama", "openai"]
STARTED = 1_700_000_000_000_000_000
NOW = STARTED + 2_000_000_001
CREATED = "2023-11-14T22:13:22.000000001Z"

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def asked(path: str = "/api/chat", **fields: Any) -> tuple[Parsed, bytes]:
    defaults: dict[str, Any] = {
        "model": "Smollm2",
        "messages": [{"role": "user", "content": "Hi"}],
        "prompt": "Hi",
        "input": "Hi",
    }
    body = json.dumps({**defaults, **fields}).encode()
    return parse(path, body), body


def sent(path: str = "/api/chat", **fields: Any) -> Sending:
    parsed, body = asked(path, **fields)
    return NATIVE.request(parsed, body, "smollm2-node")


def said(path: str = "/api/chat", **fields: Any) -> dict[str, Any]:
    return json.loads(sent(path, **fields).body)


def answered(data: bytes, path: str = "/api/chat", *, at: list[int] | None = None, **fields: Any) -> bytes:
    parsed, _ = asked(path, **fields)
    answer = NATIVE.answer(parsed, STARTED)
    written = b"".join([answer.feed(chunk, NOW) for chunk in cut(data, at or [])])
    return written + answer.finish(NOW)


def items(written: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.splitlines()]


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(reason: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": reason}])


# --- requests -------------------------------------------------------------------------------------------------------


def test_an_openai_client_needs_no_translation_towards_ollama() -> None:
    assert ("openai", "ollama") not in TRANSLATIONS
    assert ("ollama", "ollama") not in TRANSLATIONS


def test_a_chat_is_sent_under_the_nodes_own_name_for_the_model() -> None:
    assert sent().path == "/v1/chat/completions"
    assert said() == {
        "model": "smollm2-node",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_chat_that_is_not_streamed_asks_for_no_stream_options() -> None:
    assert said(stream=False)["stream"] is False
    assert "stream_options" not in said(stream=False)


def test_options_keep_their_values_under_the_names_of_llama_cpp() -> None:
    options = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 42, "stop": ["a", "b"],
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "repeat_penalty": 1.1, "typical_p": 1, "repeat_last_n": 64,
    }  # fmt: skip
    assert said(options=options).items() >= options.items()


@pytest.mark.parametrize(
    ("num_predict", "limit"), [(20, 20), (20.0, 20), (-1, None), (-2, None), (0, None), (None, None)]
)
def test_num_predict_is_a_limit_only_if_it_is_positive(num_predict: Any, limit: int | None) -> None:
    assert said(options={"num_predict": num_predict}).get("max_tokens") == limit


def test_a_num_predict_that_is_no_number_is_refused_in_ollamas_words() -> None:
    with pytest.raises(BadRequest, match='option "num_predict" must be of type integer'):
        sent(options={"num_predict": "many"})


def test_what_the_node_cannot_be_told_is_reported() -> None:
    sending = sent(options={"num_ctx": 8192, "temperature": 0, "num_gpu": None}, keep_alive="5m", truncate=True)
    assert [change.field for change in sending.changes] == ["options.num_ctx", "keep_alive", "truncate"]
    assert "num_ctx" not in json.loads(sending.body)


@pytest.mark.parametrize(
    ("asked_for", "response_format"),
    [
        (None, None),
        ("", None),
        ("json", {"type": "json_object"}),
        (
            {"type": "object"},
            {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}}},
        ),
    ],
)
def test_formats_are_translated(asked_for: Any, response_format: Any) -> None:
    assert said(format=asked_for).get("response_format") == response_format


@pytest.mark.parametrize("asked_for", ["xml", 5, [1]])
def test_an_unknown_format_is_refused(asked_for: Any) -> None:
    with pytest.raises(BadRequest, match="invalid format"):
        sent(format=asked_for)


def test_thinking_is_a_switch_or_an_effort() -> None:
    assert said(think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert said(think=True)["chat_template_kwargs"] == {"enable_thinking": True}
    assert said(think="max")["reasoning_effort"] == "high"
    assert "chat_template_kwargs" not in said()
    with pytest.raises(BadRequest, match="invalid think value"):
        sent(think="hard")


def test_images_become_data_uris_of_their_type() -> None:
    pictures = ["/9j/4AAQ", "iVBORw0KGgoAAAA", "UklGRg", "data:image/gif;base64,R0lGOD"]
    message = said(messages=[{"role": "user", "content": "See", "images": pictures}])["messages"][0]
    assert message["content"][0] == {"type": "text", "text": "See"}
    assert [part["image_url"]["url"] for part in message["content"][1:]] == [
        "data:image/jpeg;base64,/9j/4AAQ",
        "data:image/png;base64,iVBORw0KGgoAAAA",
        "data:image/webp;base64,UklGRg",
        "data:image/gif;base64,R0lGOD",
    ]
    with pytest.raises(BadRequest, match="images"):
        sent(messages=[{"content": "x", "images": [5]}])


def test_tools_pass_and_an_empty_list_does_not() -> None:
    assert said(tools=[WEATHER])["tools"] == [WEATHER]
    assert "tools" not in said(tools=[])


def test_calls_and_results_are_tied_together_by_ids() -> None:
    call = {"function": {"name": "get_weather", "arguments": {"city": "Rome", "n": 1}}}
    other: dict[str, Any] = {"function": {"name": "get_time", "arguments": {}}, "id": "mine"}
    messages = said(
        messages=[
            {"role": "user", "content": "?"},
            {"role": "assistant", "thinking": "hm", "tool_calls": [call, other]},
            {"role": "tool", "tool_name": "get_time", "content": "noon"},
            {"role": "tool", "content": "22 C"},
            {"role": "Assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_2", "content": "23 C"},
        ]
    )["messages"]
    first, second = messages[1]["tool_calls"]
    assert first == {
        "id": "call_0",
        "type": "function",
        "function": {"name": "get_weather", "arguments": first["function"]["arguments"]},
    }
    assert json.loads(first["function"]["arguments"]) == {"city": "Rome", "n": 1}
    assert (second["id"], second["function"]["arguments"]) == ("mine", "{}")
    assert messages[1]["reasoning_content"] == "hm"
    assert messages[1]["content"] == ""
    assert messages[2] == {"role": "tool", "content": "noon", "tool_call_id": "mine", "name": "get_time"}
    assert messages[3] == {"role": "tool", "content": "22 C", "tool_call_id": "call_0", "name": "get_weather"}
    assert messages[4]["role"] == "assistant"
    assert messages[4]["tool_calls"][0]["id"] == "call_2"
    assert messages[5]["tool_call_id"] == "call_2"


def test_results_of_one_tool_called_twice_are_taken_in_order() -> None:
    call: dict[str, Any] = {"function": {"name": "f", "arguments": {}}}
    result = {"role": "tool", "tool_name": "f", "content": "x"}
    messages = said(messages=[{"role": "assistant", "tool_calls": [call, call]}, result, result])["messages"]
    assert [message["tool_call_id"] for message in messages[1:]] == ["call_0", "call_1"]


def test_a_message_without_content_has_an_empty_one_because_servers_insist() -> None:
    assert said(messages=[{"role": "user"}])["messages"] == [{"role": "user", "content": ""}]


def test_a_prompt_becomes_messages() -> None:
    sending = sent("/api/generate", prompt="Why?", system="Be brief.", images=["iVBORw0KGgo"])
    assert sending.path == "/v1/chat/completions"
    system, user = json.loads(sending.body)["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]


def test_a_raw_prompt_goes_where_no_template_is_applied() -> None:
    sending = sent("/api/generate", prompt="<|x|>Why?", raw=True, options={"num_predict": 3})
    assert sending.path == "/v1/completions"
    body = json.loads(sending.body)
    assert (body["prompt"], body["max_tokens"]) == ("<|x|>Why?", 3)
    assert "messages" not in body


def test_what_the_dialect_cannot_say_is_refused() -> None:
    with pytest.raises(BadRequest, match='"Smollm2" does not support insert'):
        sent("/api/generate", suffix="tail")
    with pytest.raises(BadRequest, match="raw"):
        sent("/api/generate", raw=True, images=["x"])


def test_embeddings_ask_for_numbers() -> None:
    sending = sent("/api/embed", input=["a", "b"], dimensions=64, truncate=True)
    assert sending.path == "/v1/embeddings"
    assert json.loads(sending.body) == {
        "model": "smollm2-node", "input": ["a", "b"], "encoding_format": "float", "dimensions": 64
    }  # fmt: skip
    assert [change.field for change in sending.changes] == ["truncate"]
    assert said("/api/embeddings", prompt="one", input="other")["input"] == "one"


def test_logprobs_are_asked_for() -> None:
    assert said(logprobs=True, top_logprobs=2).items() >= {"logprobs": True, "top_logprobs": 2}.items()


def test_keys_in_another_case_are_understood() -> None:
    body = b'{"Model":"m","Messages":[{"Content":"Hi"}],"Options":{"num_predict":3}}'
    sending = NATIVE.request(parse("/api/chat", body), body, "m")
    assert json.loads(sending.body)["messages"] == [{"role": "user", "content": "Hi"}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
native_fields = st.dictionaries(
    st.sampled_from(
        ["messages", "prompt", "input", "options", "format", "think", "images", "tools", "raw", "suffix", "Options"]
    ),
    json_values,
)


@given(path=st.sampled_from(["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"]), fields=native_fields)
def test_a_request_is_translated_or_refused_and_nothing_else(path: str, fields: dict[str, Any]) -> None:
    try:
        parsed, body = asked(path, **fields)
        json.loads(NATIVE.request(parsed, body, "m").body)
    except HerdError:
        return


# --- loading --------------------------------------------------------------------------------------------------------


def test_loading_and_unloading_are_answered_without_the_node() -> None:
    head = {"model": "Smollm2", "created_at": CREATED}
    empty = {"role": "assistant", "content": ""}
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("/api/generate", {"prompt": ""}, {**head, "response": "", "done": True, "done_reason": "load"}),
        ("/api/chat", {"messages": []}, {**head, "message": empty, "done": True, "done_reason": "load"}),
        (
            "/api/chat",
            {"messages": [], "keep_alive": 0},
            {**head, "message": empty, "done": True, "done_reason": "unload"},
        ),
        ("/api/embed", {"input": []}, {"model": "Smollm2", "embeddings": []}),
        ("/api/embeddings", {"prompt": ""}, {"embedding": []}),
    ]
    for path, fields, expected in cases:
        parsed, _ = asked(path, **fields)
        assert json.loads(NATIVE.local(parsed, NOW) or b"") == expected


def test_a_question_is_not_answered_without_the_node() -> None:
    assert NATIVE.local(asked(keep_alive=0)[0], NOW) is None


# --- answers --------------------------------------------------------------------------------------------------------


def test_a_real_stream_becomes_ollamas_lines() -> None:
    lines = items(answered(transcript("llama.cpp/chat.sse")))
    assert lines[0] == {
        "model": "Smollm2", "created_at": CREATED, "message": {"role": "assistant", "content": "Hello"}, "done": False
    }  # fmt: skip
    assert "".join(line["message"]["content"] for line in lines) == "Hello! I'm here to help with any kind of creative"
    assert lines[-1] == {
        "model": "Smollm2",
        "created_at": CREATED,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "total_duration": NOW - STARTED,
        "prompt_eval_count": 33,
        "prompt_eval_duration": 193_279_000,
        "eval_count": 12,
        "eval_duration": 168_637_000,
    }


def test_reasoning_becomes_thinking() -> None:
    lines = items(answered(transcript("llama.cpp/think.sse")))
    assert "".join(line["message"].get("thinking", "") for line in lines) == "Easy."
    assert "".join(line["message"]["content"] for line in lines) == "Hello there."
    whole = json.loads(answered(transcript("llama.cpp/think.json"), stream=False))
    assert whole["message"] == {"role": "assistant", "content": "Hello there.", "thinking": "Easy."}


@pytest.mark.parametrize(("name", "stream"), [("llama.cpp/tool.sse", True), ("llama.cpp/tool.json", False)])
def test_a_tool_call_arrives_whole_with_arguments_that_are_an_object(name: str, stream: bool) -> None:
    lines = items(answered(transcript(name), stream=stream))
    calls = [call for line in lines for call in line["message"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [{"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}]
    assert calls[0]["id"]
    assert lines[-1]["done_reason"] == "stop"


@pytest.mark.parametrize(("name", "stream"), [("llama.cpp/completion.sse", True), ("llama.cpp/completion.json", False)])
def test_a_raw_completion_becomes_a_response(name: str, stream: bool) -> None:
    lines = items(answered(transcript(name), "/api/generate", raw=True, stream=stream))
    assert "".join(line["response"] for line in lines) == " a canvas of endless possibilities, where every"
    assert (lines[-1]["done"], lines[-1]["eval_count"]) == (True, 8)


def test_a_chat_completion_becomes_a_response_where_a_prompt_was_asked() -> None:
    lines = items(answered(transcript("llama.cpp/think.sse"), "/api/generate"))
    assert "".join(line["response"] for line in lines) == "Hello there."
    assert "".join(line.get("thinking", "") for line in lines) == "Easy."


def test_logprobs_ride_on_each_item() -> None:
    lines = items(answered(transcript("llama.cpp/logprobs.sse"), logprobs=True))
    assert lines[0]["logprobs"][0]["token"] == "Hello"


def test_a_whole_answer_is_one_object_with_all_counters() -> None:
    whole = json.loads(answered(transcript("llama.cpp/chat.json"), stream=False))
    assert whole["message"]["content"].startswith("Hello! I'm here")
    assert (whole["prompt_eval_count"], whole["eval_count"], whole["done_reason"]) == (33, 24, "stop")
    assert whole["eval_duration"] == 330_907_000


def test_vectors_keep_their_digits_and_come_in_the_order_of_the_input() -> None:
    data = transcript("llama.cpp/embeddings.json")
    whole = json.loads(answered(data, "/api/embed"))
    assert whole["embeddings"] == [entry["embedding"] for entry in json.loads(data)["data"]]
    assert (whole["model"], whole["prompt_eval_count"]) == ("Smollm2", 3)
    turned = json.dumps({"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}]}).encode()
    assert json.loads(answered(turned, "/api/embed"))["embeddings"] == [[1], [2]]
    assert json.loads(answered(turned, "/api/embeddings")) == {"embedding": [1]}


@pytest.mark.parametrize("name", ["chat", "think", "tool", "logprobs", "completion"])
@given(at=places)
def test_every_cut_of_a_real_stream_gives_the_same_lines(name: str, at: list[int]) -> None:
    data = transcript(f"llama.cpp/{name}.sse")
    assert answered(data, at=at) == answered(data)
    assert answered(data.replace(b"\n", b"\r\n"), at=at) == answered(data)


def test_one_byte_at_a_time_gives_the_same_lines() -> None:
    data = transcript("llama.cpp/tool.sse")
    assert answered(data, at=list(range(len(data)))) == answered(data)


@pytest.mark.parametrize("name", ["chat", "think", "tool"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_translated_answer_ends_as_a_native_one(name: str, stream: bool) -> None:
    written = answered(transcript(f"llama.cpp/{name}.{'sse' if stream else 'json'}"), stream=stream)
    native = Watch("ollama", "chat", streaming=stream)
    native.feed(written)
    node = Watch("openai", "chat", streaming=stream)
    node.feed(transcript(f"llama.cpp/{name}.{'sse' if stream else 'json'}"))
    here, there = native.ending(), node.ending()
    assert here.finished
    assert (here.prompt_tokens, here.completion_tokens, here.prompt_ms, here.generate_ms) == (
        there.prompt_tokens, there.completion_tokens, there.prompt_ms, there.generate_ms,
    )  # fmt: skip


texts = st.text(max_size=12)
plain_objects = st.dictionaries(
    texts, st.none() | st.integers() | texts | st.floats(allow_nan=False, allow_infinity=False), max_size=3
)


@given(pieces=st.lists(st.tuples(texts, texts), max_size=8), at=places, done=st.booleans())
def test_every_word_of_a_stream_reaches_the_client_in_order(
    pieces: list[tuple[str, str]], at: list[int], done: bool
) -> None:
    data = b"".join([delta(content=content, reasoning_content=thinking) for content, thinking in pieces])
    data += delta("stop") + (b"data: [DONE]\n\n" if done else b"")
    lines = items_of(answered(data, at=at))
    assert "".join(line["message"]["content"] for line in lines) == "".join(content for content, _ in pieces)
    assert "".join(line["message"].get("thinking", "") for line in lines) == "".join(text for _, text in pieces)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def items_of(written: bytes) -> list[dict[str, Any]]:
    assert written.endswith(b"\n")
    return [json.loads(line) for line in written[:-1].split(b"\n")]


@given(
    arguments=st.lists(plain_objects, min_size=1, max_size=3),
    indent=st.sampled_from([None, 2]),
    size=st.integers(1, 9),
)
def test_arguments_in_pieces_become_the_same_objects(
    arguments: list[dict[str, Any]], indent: int | None, size: int
) -> None:
    data = b""
    for index, one in enumerate(arguments):
        data += delta(tool_calls=[{"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": ""}}])
        text = json.dumps(one, indent=indent)
        for start in range(0, len(text), size):
            data += delta(tool_calls=[{"index": index, "function": {"arguments": text[start : start + size]}}])
    lines = items_of(answered(data + delta("tool_calls") + b"data: [DONE]\n\n"))
    assert [call["function"]["arguments"] for call in lines[0]["message"]["tool_calls"]] == arguments


def test_a_call_without_arguments_has_an_empty_object() -> None:
    data = delta(tool_calls=[{"function": {"name": "now", "arguments": ""}}]) + delta("tool_calls")
    assert items(answered(data))[0]["message"]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("arguments", ['{"city": "Pa', "5", "[]", "nonsense"])
def test_a_call_that_was_cut_off_is_shown_as_text_and_never_run(arguments: str) -> None:
    data = delta(tool_calls=[{"function": {"name": "f", "arguments": arguments}}]) + delta("length")
    lines = items(answered(data))
    assert "tool_calls" not in lines[0]["message"]
    assert arguments in lines[0]["message"]["content"]
    assert lines[-1]["done_reason"] == "length"


def test_comments_and_other_fields_of_events_are_skipped() -> None:
    data = b": ping\n\nevent: message\nid: 5\nretry: 10\n" + delta(content="a") + b":\n\n" + delta("stop")
    assert [line["message"]["content"] for line in items(answered(data))] == ["a", ""]


def test_durations_that_the_node_does_not_give_are_those_that_were_seen() -> None:
    answer = NATIVE.answer(asked()[0], STARTED)
    answer.feed(delta(content="a"), STARTED + 5)
    answer.feed(delta("stop"), STARTED + 20)
    last = items(answer.feed(b"data: [DONE]\n\n", STARTED + 25))[-1]
    assert (last["prompt_eval_duration"], last["eval_duration"], last["total_duration"]) == (5, 20, 25)
    assert "eval_count" not in last


@pytest.mark.parametrize(
    "bad",
    [
        event(error={"code": 500, "message": "out of memory", "type": "server_error"}),
        event(error="out of memory"),
        b'error: {"code":500,"message":"out of memory","type":"server_error"}\n\n',
    ],
)
def test_an_error_event_becomes_an_error_line_and_the_last_one(bad: bytes) -> None:
    lines = items(answered(delta(content="a") + bad + delta(content="b") + b"data: [DONE]\n\n"))
    assert lines[-1] == {"error": "out of memory"}
    assert len(lines) == 2


@pytest.mark.parametrize("data", [b"", delta(content="a"), b"not a stream", b"data:", b"{}\n"])
def test_a_stream_that_only_stops_is_never_a_clean_end(data: bytes) -> None:
    lines = items(answered(data))
    assert "unexpected EOF" in lines[-1]["error"]
    assert not any(line.get("done") for line in lines)


@pytest.mark.parametrize("data", [delta(content="a")[:-9], b"data: <html>\n", b"data: 5\n", b"data: \xff\n"])
def test_a_stream_of_something_else_is_the_nodes_failure(data: bytes) -> None:
    with pytest.raises(NodeUnreachable) as failed:
        answered(data)
    assert failed.value.cause == "protocol"


def test_a_line_without_end_is_not_waited_for() -> None:
    answer = NATIVE.answer(asked()[0], STARTED)
    block = b"x" * (1024 * 1024)
    for _ in range(LINE_MAX_BYTES // len(block)):
        answer.feed(block, NOW)
    with pytest.raises(NodeUnreachable, match="line without end"):
        answer.feed(block, NOW)


def test_a_tool_call_without_end_is_not_waited_for() -> None:
    answer = NATIVE.answer(asked()[0], STARTED)
    piece = delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "x" * (1024 * 1024)}}])
    for _ in range(LINE_MAX_BYTES // (1024 * 1024)):
        answer.feed(piece, NOW)
    with pytest.raises(NodeUnreachable, match="tool call has no end"):
        answer.feed(piece, NOW)


def test_after_the_end_nothing_follows() -> None:
    data = delta("stop") + b"data: [DONE]\n\n" + delta(content="more") + b"data: [DONE]\n\n"
    assert [line["done"] for line in items(answered(data))] == [True]


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/api/chat", b""), ("/api/chat", b"<html>"), ("/api/chat", b'{"choices":[]}'), ("/api/chat", b"[1]"),
        ("/api/embed", b"{}"), ("/api/embed", b'{"data":[{}]}'), ("/api/embed", b"\xff"),
    ],
)  # fmt: skip
def test_a_whole_answer_that_cannot_be_read_is_the_nodes_failure(path: str, data: bytes) -> None:
    with pytest.raises(NodeUnreachable) as failed:
        answered(data, path, stream=False)
    assert failed.value.cause == "protocol"


@given(
    path=st.sampled_from(["/api/chat", "/api/generate", "/api/embed"]),
    stream=st.booleans(),
    data=st.binary(max_size=120) | json_values.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n"),
    at=places,
)
def test_no_answer_of_a_node_raises_anything_but_our_own_errors(
    path: str, stream: bool, data: bytes, at: list[int]
) -> None:
    try:
        written = answered(data, path, at=at, stream=stream)
    except HerdError:
        return
    assert items(written)
    assert isinstance(Watch("ollama", "chat", streaming=stream).ending(), Ending)
