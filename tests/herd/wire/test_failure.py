"""Errors in the words and the shape of the client's family, and never an empty body."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.types import Dialect
from herd.errors import BadRequest, HerdError, ModelNotFound, NodeAnswered, NodeTimeout, NoNodeAvailable, QueueFull
from herd.wire import DIALECTS
from herd.wire.failure import body, message, model_not_found, spelled
from tests.herd.wire.transcript import transcript


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("m"), 400, "invalid_request_error"),
        (ModelNotFound("m"), 404, "not_found_error"),
        (NoNodeAvailable("m"), 503, "api_error"),
        (NodeTimeout("m"), 504, "api_error"),
        (HerdError("m"), 500, "api_error"),
    ],
)
def test_each_error_has_its_status_and_the_shape_of_each_family(error: HerdError, status: int, kind: str) -> None:
    native = body("ollama", error)
    assert (native.status, native.content_type) == (status, "application/json; charset=utf-8")
    assert json.loads(native.body) == {"error": "m"}
    openai = body("openai", error)
    assert (openai.status, openai.content_type) == (status, "application/json")
    assert json.loads(openai.body) == {"error": {"message": "m", "type": kind, "param": None, "code": None}}


def test_a_full_queue_speaks_ollamas_words_with_both_spaces() -> None:
    text = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
    assert body("ollama", QueueFull()).body == text


def test_a_native_frame_is_one_line_whose_error_is_a_text() -> None:
    assert DIALECTS["ollama"].frame("gone") == b'{"error":"gone"}\n'


def test_an_openai_frame_is_one_event_that_both_sdks_raise_on() -> None:
    assert DIALECTS["openai"].frame("gone") == (
        b'data: {"error":{"message":"gone","type":"api_error","param":null,"code":null}}\n\n'
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/api/chat", "model 'nope' not found"),
        ("/api/generate", "model 'nope' not found"),
        ("/v1/chat/completions", "model 'nope' not found"),
        ("/v1/completions", "model 'nope' not found"),
        ("/api/embed", 'model "nope" not found, try pulling it first'),
        ("/api/embeddings", 'model "nope" not found, try pulling it first'),
        ("/v1/embeddings", 'model "nope" not found, try pulling it first'),
    ],
)
def test_an_unknown_model_is_missed_in_the_words_of_each_path(path: str, text: str) -> None:
    error = model_not_found(path, "nope")
    assert isinstance(error, ModelNotFound)
    assert error.message == text


def test_braces_in_a_name_are_only_text() -> None:
    assert "model" in model_not_found("/api/chat", "{0.__class__}").message


@pytest.mark.parametrize("name", ["plain:", "/plain", "x/y/z/plain", "plain@sha256:0", "a b", "x" * 81, "", "ns:x/m"])
def test_a_malformed_name_is_a_bad_request(name: str) -> None:
    error = model_not_found("/api/chat", name)
    assert isinstance(error, BadRequest)
    assert error.message == "invalid model name"


@pytest.mark.parametrize(
    "name",
    [
        "plain", " plain ", "plain:LATEST", "library/plain", "registry.ollama.ai/library/plain", "plain:latest:local",
        "http://registry.ollama.ai/library/plain", "hf.co/u-x/r.GGUF:Q4_K_M", "localhost:5000/ns/m:1", "foo:cloud",
    ],
)  # fmt: skip
def test_a_well_formed_name_is_only_not_found(name: str) -> None:
    assert isinstance(model_not_found("/api/chat", name), ModelNotFound)


def test_what_a_node_answers_in_the_clients_dialect_is_not_touched() -> None:
    native = b'{"error":"unauthorized","signin_url":"https://x"}'
    reply = body("ollama", NodeAnswered(401, native, "application/json"))
    assert (reply.status, reply.content_type, reply.body) == (401, "application/json", native)
    other = transcript("llama.cpp/error_context.json")
    assert body("openai", NodeAnswered(400, other, "application/json")).body == other


def test_a_llama_cpp_error_reaches_a_native_client_in_its_shape() -> None:
    reply = body("ollama", NodeAnswered(400, transcript("llama.cpp/error_context.json"), "application/json"))
    assert reply.status == 400
    assert reply.content_type == "application/json; charset=utf-8"
    assert json.loads(reply.body) == {
        "error": "request (6031 tokens) exceeds the available context size (2048 tokens), try increasing it"
    }


def test_a_native_error_reaches_an_openai_client_in_its_shape() -> None:
    reply = body("openai", NodeAnswered(404, b'{"error":"model \'x\' not found"}', "application/json"))
    assert reply.status == 404
    assert json.loads(reply.body)["error"] == {
        "message": "model 'x' not found", "type": "not_found_error", "param": None, "code": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "the node answered 502"),
        (b"<html><body>Bad Gateway</body></html>", "the node answered 502"),
        (b"404 page not found", "404 page not found"),
        (b"upstream gone\nsecond line", "upstream gone"),
        (b'{"detail":"x"}', "the node answered 502"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_an_answer_that_is_no_error_body_becomes_one_that_is_never_empty(answer: bytes, text: str) -> None:
    error = NodeAnswered(502, answer, "text/html")
    assert json.loads(body("ollama", error).body) == {"error": text}
    assert json.loads(body("openai", error).body)["error"]["message"] == text
    assert message(error) == text


def test_an_error_without_words_says_what_its_status_means() -> None:
    assert json.loads(spelled("ollama", 503, "").body) == {"error": "Service Unavailable"}
    assert json.loads(spelled("openai", 599, "").body)["error"]["message"] == "status 599"


def test_the_log_gets_the_words_of_a_node_and_no_novel() -> None:
    long = json.dumps({"error": "x" * 10_000}).encode()
    assert len(message(NodeAnswered(500, long, ""))) < 1000
    assert message(QueueFull()) == QueueFull().message


@given(dialect=st.sampled_from(list[Dialect](DIALECTS)), status=st.integers(100, 999), answer=st.binary(max_size=80))
def test_every_answer_of_a_node_becomes_an_error_that_its_family_can_read(
    dialect: Dialect, status: int, answer: bytes
) -> None:
    reply = body(dialect, NodeAnswered(status, answer, ""))
    assert reply.status == status
    assert DIALECTS[dialect].complaint(reply.body)
