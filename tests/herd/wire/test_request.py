"""Reading a request: what routing learns, what clients are told, and that no bytes at all can hurt."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import BadRequest, HerdError, ModelNotFound
from herd.wire import ROUTES
from herd.wire.request import NAME_MAX, TAG_CHARACTERS_MAX, TAGS_MAX, parse, stripped, tags

CHAT = "/api/chat"
NATIVE_CHAT = {"model": "llama3", "messages": [{"role": "user", "content": "x" * 400}]}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def chat(**fields: Any) -> bytes:
    return body(**{**NATIVE_CHAT, **fields})


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "dialect", "streaming"),
    [
        ("/api/chat", "chat", "ollama", True),
        ("/api/generate", "generate", "ollama", True),
        ("/api/embed", "embed", "ollama", False),
        ("/api/embeddings", "embed", "ollama", False),
        ("/v1/chat/completions", "chat", "openai", False),
        ("/v1/completions", "generate", "openai", False),
        ("/v1/embeddings", "embed", "openai", False),
    ],
)
def test_each_path_has_its_kind_its_dialect_and_its_default_of_streaming(
    path: str, kind: str, dialect: str, streaming: bool
) -> None:
    parsed = parse(path, body(model="llama3", prompt="x", input="x", messages=[{"content": "x"}]))
    assert (parsed.kind, parsed.dialect, parsed.streaming) == (kind, dialect, streaming)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_client_that_says_whether_to_stream_is_heard(path: str, stream: bool) -> None:
    assert parse(path, chat(stream=stream)).streaming is stream


def test_a_null_stream_is_as_good_as_none() -> None:
    assert parse(CHAT, chat(stream=None)).streaming is True


@pytest.mark.parametrize("asked", ["LLama3", "llama3:latest", " llama3 ", "library/llama3", "llama3:local"])
def test_all_spellings_of_a_name_meet_and_the_clients_own_is_kept(asked: str) -> None:
    parsed = parse(CHAT, chat(model=asked))
    assert (parsed.model, parsed.asked) == ("llama3:latest", asked)


def test_one_message_of_400_characters_is_104_tokens() -> None:
    assert parse(CHAT, chat()).tokens_estimated == 104
    assert parse("/v1/chat/completions", chat()).tokens_estimated == 104


def test_no_messages_are_one_token() -> None:
    assert parse(CHAT, body(model="m", messages=[])).tokens_estimated == 1


def test_an_image_is_150_tokens_and_needs_vision() -> None:
    parsed = parse(CHAT, body(model="m", messages=[{"content": "x" * 384, "images": ["aaaa", "bbbb"]}]))
    assert (parsed.tokens_estimated, parsed.needs) == (100 + 300, ("vision",))


def test_an_image_part_of_an_openai_message_needs_vision_too() -> None:
    parts = [
        {"type": "text", "text": "x" * 384},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}},
    ]
    parsed = parse("/v1/chat/completions", body(model="m", messages=[{"role": "user", "content": parts}]))
    assert (parsed.tokens_estimated, parsed.needs) == (250, ("vision",))


def test_an_image_in_a_generate_request_needs_vision() -> None:
    assert parse("/api/generate", body(model="m", prompt="x", images=["aaaa"])).needs == ("vision",)


def test_system_and_prompt_both_count() -> None:
    assert parse("/api/generate", body(model="m", prompt="x" * 84, system="y" * 84)).tokens_estimated == 50


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
def test_every_input_of_an_embedding_counts(path: str) -> None:
    assert parse(path, body(model="m", input=["x" * 84, "y" * 84])).tokens_estimated == 50


def test_token_numbers_stand_for_tokens() -> None:
    assert parse("/v1/embeddings", body(model="m", input=[1, 2, 3])).tokens_estimated == 3


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_offered_tools_are_a_need_and_an_empty_list_is_not(path: str) -> None:
    assert parse(path, chat(tools=[{"type": "function"}])).needs == ("tools",)
    assert parse(path, chat(tools=[])).needs == ()
    assert parse(path, chat(tools=None)).needs == ()


def test_options_that_matter_are_read() -> None:
    parsed = parse(CHAT, chat(options={"num_ctx": 8192, "num_predict": 20, "temperature": 0}))
    assert (parsed.num_ctx, parsed.tokens_max) == (8192, 20)


@pytest.mark.parametrize(
    "options", [None, {}, {"num_ctx": None, "num_predict": -1}, {"num_ctx": 10**40, "num_predict": 0}]
)
def test_absent_and_senseless_options_are_none(options: Any) -> None:
    parsed = parse(CHAT, chat(options=options))
    assert (parsed.num_ctx, parsed.tokens_max) == (None, None)


def test_an_option_of_the_wrong_type_is_left_to_the_node_which_has_its_own_words_for_it() -> None:
    assert parse(CHAT, chat(options={"num_ctx": "x"})).num_ctx is None


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_openai_limit_is_read(field: str) -> None:
    assert parse("/v1/chat/completions", chat(**{field: 7})).tokens_max == 7


def test_fallbacks_are_canonical_and_each_once() -> None:
    parsed = parse(CHAT, chat(fallback_models=["Mistral", "mistral:latest", "phi3:mini", " "]))
    assert parsed.fallbacks == ("mistral:latest", "phi3:mini")


@pytest.mark.parametrize("field", ["options", "fallback_models", "metadata", "user", "keep_alive", "tools", "stream"])
def test_null_is_tolerated_everywhere(field: str) -> None:
    assert parse(CHAT, chat(**{field: None})).model == "llama3:latest"


# --- tags -----------------------------------------------------------------------------------------------------------


def test_tags_come_from_body_header_and_user_in_this_order_and_each_once() -> None:
    parsed = parse(CHAT, chat(metadata={"tags": ["a", "b"]}, user="al"))
    assert tags(parsed, "b, c ,,") == ("a", "b", "c", "user:al")
    assert tags(parsed) == ("a", "b", "user:al")


def test_falsy_tags_are_dropped_and_others_become_text() -> None:
    parsed = parse(CHAT, chat(metadata={"tags": ["", None, 0, 7, False, "x", {"no": "text"}]}))
    assert tags(parsed) == ("7", "x")


@pytest.mark.parametrize("metadata", ["text", 5, [], {"tags": "a,b"}, {"tags": {"a": 1}}, {}])
def test_metadata_of_another_shape_has_no_tags(metadata: Any) -> None:
    assert tags(parse(CHAT, chat(metadata=metadata))) == ()


def test_tags_are_bounded_in_number_and_length() -> None:
    many = [f"{number}-{'x' * 500}" for number in range(100)]
    found = tags(parse(CHAT, chat(metadata={"tags": many})), ",".join(f"h{number}" for number in range(100)))
    assert len(found) == TAGS_MAX
    assert max(map(len, found)) == TAG_CHARACTERS_MAX


# --- load and unload ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/generate", {}),
        ("/api/generate", {"prompt": ""}),
        ("/api/generate", {"prompt": None, "keep_alive": "5m"}),
        ("/api/chat", {}),
        ("/api/chat", {"messages": [], "keep_alive": -1}),
        ("/api/embed", {}),
        ("/api/embed", {"input": ""}),
        ("/api/embed", {"input": [], "keep_alive": 0}),
        ("/api/embeddings", {"prompt": ""}),
        ("/v1/completions", {"prompt": ""}),
    ],
)
def test_nothing_to_answer_is_a_load(path: str, fields: dict[str, Any]) -> None:
    parsed = parse(path, body(model="m", **fields))
    assert (parsed.is_load, parsed.is_unload) == (True, False)


@pytest.mark.parametrize("keep_alive", [0, 0.0, -0.0, "0", "0s", "-0s", "0m0s", "0h0m0.0s", "0ms", ".0s", "0.s"])
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_nothing_to_answer_and_no_keeping_is_an_unload(path: str, keep_alive: Any) -> None:
    parsed = parse(path, body(model="m", keep_alive=keep_alive))
    assert (parsed.is_load, parsed.is_unload) == (False, True)


@pytest.mark.parametrize(
    "keep_alive", [None, 1, -1, 0.5, "5m", "1h0s", "0s1ms", "-1m", "", "s", "0x", False, [], "0s\n"]
)
def test_other_values_of_keep_alive_do_not_unload(keep_alive: Any) -> None:
    assert not parse("/api/generate", body(model="m", keep_alive=keep_alive)).is_unload


def test_a_question_with_keep_alive_zero_is_a_question() -> None:
    parsed = parse(CHAT, chat(keep_alive=0))
    assert not parsed.is_load
    assert not parsed.is_unload


def test_an_openai_chat_without_messages_is_not_a_load_but_the_nodes_to_refuse() -> None:
    assert not parse("/v1/chat/completions", body(model="m")).is_load


# --- as Go reads it -------------------------------------------------------------------------------------------------


def test_keys_match_in_any_case() -> None:
    written = b'{"MODEL":"m","Messages":[{"Role":"user","CONTENT":"' + b"x" * 400 + b'"}],"Stream":false}'
    parsed = parse(CHAT, written)
    assert (parsed.model, parsed.tokens_estimated, parsed.streaming, parsed.is_load) == ("m:latest", 104, False, False)


def test_messages_in_another_case_are_not_taken_for_an_unload() -> None:
    written = b'{"model":"m","Messages":[{"content":"hello"}],"keep_alive":0}'
    assert not parse(CHAT, written).is_unload


@pytest.mark.parametrize("rest", [b" trailing", b"}", b'{"model":"other"}', b"\xff", b"\x00"])
def test_bytes_after_the_first_value_are_ignored(rest: bytes) -> None:
    assert parse(CHAT, chat() + rest).asked == "llama3"


@pytest.mark.parametrize("written", [b'{"model":"m\xff","prompt":"x"}', b'{"model":"m","prompt":"\xff"}'])
def test_broken_utf_8_is_replaced(written: bytes) -> None:
    assert parse("/api/generate", written).asked.startswith("m")


def test_a_lone_surrogate_does_not_reach_the_log() -> None:
    written = body(
        model="m\ud800", prompt="x", metadata={"tags": ["\udfff"]}, user="\ud800", fallback_models=["\ud800"]
    )
    parsed = parse("/api/generate", written)
    msgspec.json.encode([parsed, tags(parsed, "\ud800")])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [b"", b" ", b"\r\n"])
@pytest.mark.parametrize(("path", "text"), [(CHAT, "missing request body"), ("/v1/chat/completions", "EOF")])
def test_an_empty_body_has_ollamas_text(path: str, text: str, empty: bytes) -> None:
    with pytest.raises(BadRequest, match=f"^{text}$"):
        parse(path, empty)


@pytest.mark.parametrize("written", [b"{", b'{"model"', b'{"model":"x', b'{"model":"x","messages":[{"content":"a"}'])
def test_truncated_json_has_gos_text(written: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^unexpected EOF$"):
        parse(CHAT, written)


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("/api/chat", BadRequest, "model is required"),
        ("/api/embeddings", BadRequest, "model is required"),
        ("/v1/chat/completions", BadRequest, "model is required"),
        ("/api/generate", ModelNotFound, "model '' not found"),
        ("/api/embed", ModelNotFound, "model '' not found"),
        ("/v1/completions", ModelNotFound, "model '' not found"),
        ("/v1/embeddings", ModelNotFound, "model '' not found"),
    ],
)
@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}, {"model": "  "}])
def test_a_missing_model_has_ollamas_text_of_each_path(
    path: str, error: type[HerdError], text: str, model: dict[str, Any]
) -> None:
    with pytest.raises(error, match=f"^{text}$"):
        parse(path, body(prompt="x", input="x", messages=[{"content": "x"}], **model))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": 5}, "model must be a string, not a number"),
        ({"model": "m", "stream": "yes"}, "stream must be true or false, not a string"),
        ({"model": "m", "messages": {}}, "messages must be a list, not an object"),
        ({"model": "m", "messages": [{"content": [1]}]}, "messages[0].content must be a string, not a list"),
        ({"model": "m", "tools": {}}, "tools must be a list, not an object"),
        ({"model": "m", "options": []}, "options must be an object, not a list"),
        ({"model": "m", "fallback_models": "x"}, "fallback_models must be a list, not a string"),
    ],
)
def test_a_wrong_type_names_its_field(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(CHAT, body(**fields))
    assert refused.value.message == text


@pytest.mark.parametrize("written", [b"[1]", b"5", b'"x"', b"null"])
def test_a_body_that_is_no_object_is_refused(written: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^the body must be an object"):
        parse(CHAT, written)


def test_a_wrong_character_is_shown() -> None:
    with pytest.raises(BadRequest, match="invalid character 'x' at position 9"):
        parse(CHAT, b'{"model":x}')


def test_endless_nesting_is_refused() -> None:
    with pytest.raises(BadRequest, match="exceeded max depth"):
        parse(CHAT, b'{"model":"m","other":' + b"[" * 200_000)


def test_a_novel_is_no_model_name_and_stays_out_of_the_log() -> None:
    with pytest.raises(BadRequest, match=r"^invalid model name$"):
        parse(CHAT, chat(model="x" * (NAME_MAX + 1)))


# --- changing the body ----------------------------------------------------------------------------------------------

ODD = (
    rb'{ "b" : 1.0e2 , "model":"a", "n":18446744073709551617,"u":"\u00e9\ud83d\ude00", "metadata":{"tags":["x"]},'
    rb'"m":{"model":"inner"},"fallback_models":null}'
)


def test_the_routers_own_fields_are_flagged_and_taken_out_and_nothing_else() -> None:
    assert parse("/api/generate", ODD).strip
    assert stripped(ODD) == (
        b'{"b":1.0e2,"model":"a","n":18446744073709551617,"u":"\\u00e9\\ud83d\\ude00","m":{"model":"inner"}}'
    )


@pytest.mark.parametrize("field", ["metadata", "fallback_models"])
@pytest.mark.parametrize("value", [None, [], ["x"]])
def test_either_of_them_is_enough_even_if_it_says_nothing(field: str, value: Any) -> None:
    assert parse(CHAT, chat(**{field: value})).strip


def test_a_plain_body_is_not_flagged() -> None:
    assert not parse(CHAT, chat(user="al", options={})).strip


def test_broken_bodies_cannot_be_changed() -> None:
    with pytest.raises(BadRequest):
        stripped(b'{"model":')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from([
    "model", "messages", "prompt", "input", "stream", "options", "tools", "images", "system", "metadata", "user",
    "fallback_models", "keep_alive", "max_tokens", "Model", "MESSAGES",
])  # fmt: skip
bodies = st.dictionaries(field_names, json_values, max_size=8).map(lambda value: {"model": "m", **value})
paths = st.sampled_from(sorted(ROUTES))


@given(path=paths, fields=bodies)
def test_what_is_parsed_fits_the_log_and_what_is_refused_is_our_error(path: str, fields: dict[str, Any]) -> None:
    try:
        parsed = parse(path, json.dumps(fields).encode())
    except HerdError:
        return
    msgspec.json.encode((parsed, tags(parsed, "x")))
    assert not (parsed.is_load and parsed.is_unload)


@settings(max_examples=300)
@given(path=paths, written=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_own_errors(path: str, written: bytes) -> None:
    for call in (lambda: parse(path, written), lambda: stripped(written)):
        try:
            call()
        except HerdError:
            continue


@settings(max_examples=300)
@given(path=paths, fields=bodies, at=st.integers(min_value=0), new=st.binary(max_size=3), gone=st.integers(0, 5))
def test_no_damage_to_a_body_raises_anything_but_our_own_errors(
    path: str, fields: dict[str, Any], at: int, new: bytes, gone: int
) -> None:
    written = json.dumps(fields).encode()
    place = at % (len(written) + 1)
    damaged = written[:place] + new + written[place + gone :]
    for call in (lambda: parse(path, damaged), lambda: stripped(damaged)):
        try:
            call()
        except HerdError:
            continue


@given(fields=st.dictionaries(st.text(max_size=6), json_values, max_size=6))
def test_stripping_keeps_every_other_value(fields: dict[str, Any]) -> None:
    written = json.dumps(fields).encode()
    folded = {key: value for key, value in fields.items() if key.lower() not in ("metadata", "fallback_models")}
    assert json.loads(stripped(written)) == folded
