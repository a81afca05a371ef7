"""The router is written against one description of a node, so the fake and real servers must all answer to it."""

import asyncio
import base64
import math
import re
import struct
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from tests.contract.wording import CHAT, EMBED, ERRORS, TOOL_FUNCTION, TOOLS, WORDINGS, Wording
from tests.engines.fixtures import ENGINE_TIMEOUT_S
from tests.fakes.ollama import FakeOllama

ENGINE_MARKS = (pytest.mark.engine, pytest.mark.timeout(ENGINE_TIMEOUT_S))
ENGINES = {"0.9.3": "ollama_093", "0.5.4": "ollama_054"}

HI = [{"role": "user", "content": "Say hi to the people here"}]
SHORT = {"num_predict": 4, "temperature": 0}
METRICS = {
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
}  # fmt: skip
NATIVE_JSON = "application/json; charset=utf-8"
DEADLINE_S = 30


class Node(NamedTuple):
    """A server under test."""

    url: str
    says: Wording
    http: httpx.AsyncClient


class Chunk(NamedTuple):
    """One chunk of a response body, and when it came."""

    data: bytes
    at_ns: int


def _chat_text(item: dict[str, Any]) -> str:
    return item["message"]["content"]


def _generated_text(item: dict[str, Any]) -> str:
    return item["response"]


@pytest.fixture(params=["fake", *(pytest.param(version, marks=ENGINE_MARKS) for version in ENGINES)])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    says = WORDINGS[request.param]
    if request.param in ENGINES:
        url = request.getfixturevalue(ENGINES[request.param]).url
        async with _client(url) as http:
            yield Node(url, says, http)
        return
    models = (f"{CHAT}@completion", TOOLS, EMBED)
    async with (
        FakeOllama(models=models, tokens=4000, delay_ms=5) as fake,
        _client(fake.url) as http,
    ):
        yield Node(fake.url, says, http)


# --- service ---


async def test_the_root_says_that_ollama_runs(node: Node) -> None:
    answer = await node.http.get("/")
    assert (answer.status_code, answer.text) == (200, "Ollama is running")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_the_version_has_no_prefix(node: Node) -> None:
    answer = await node.http.get("/api/version")
    assert answer.content == b'{"version":"%b"}' % node.says.version.encode()
    assert answer.headers["content-type"] == NATIVE_JSON


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
async def test_head_gives_the_head_of_get(node: Node, path: str) -> None:
    head, get = await node.http.head(path), await node.http.get(path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(get.content))
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/api/nope"])
async def test_an_unknown_path_is_a_plain_404(node: Node, path: str) -> None:
    answer = await node.http.post(path, json={})
    assert (answer.status_code, answer.text) == (404, "404 page not found")
    assert answer.headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("HEAD", "/api/ps", "GET"),
        ("GET", "/api/chat", "POST"),
        ("DELETE", "/v1/chat/completions", "POST"),
        ("POST", "/api/tags", "HEAD, GET"),
        ("OPTIONS", "/api/chat", "POST"),
    ],
)
async def test_a_wrong_method_is_refused_in_plain_text(node: Node, method: str, path: str, allow: str) -> None:
    status, text = node.says.wrong_method
    answer = await node.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/plain"
    assert answer.text == ("" if method == "HEAD" else text)
    assert answer.headers.get("allow") == (allow if status == 405 else None)


async def test_a_trailing_slash_is_redirected(node: Node) -> None:
    get = await node.http.get("/api/tags/")
    post = await node.http.post("/api/chat/", json={})
    assert (get.status_code, get.headers["location"]) == (301, "/api/tags")
    assert (post.status_code, post.headers["location"]) == (307, "/api/chat")


@pytest.mark.parametrize("host", ["foreign.example", "foreign.example:11434", "8.8.8.8"])
async def test_a_foreign_host_is_turned_away_without_a_word(node: Node, host: str) -> None:
    answer = await node.http.get("/api/version", headers={"host": host})
    assert (answer.status_code, answer.content) == (403, b"")


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1:99", "box.local", "box.internal", "a.localhost:1"])
async def test_a_local_host_is_welcome(node: Node, host: str) -> None:
    assert (await node.http.get("/api/version", headers={"host": host})).status_code == 200


async def test_origins_are_answered_as_cors_wants(node: Node) -> None:
    evil = await node.http.get("/api/version", headers={"origin": "http://evil.example"})
    local = await node.http.get("/api/version", headers={"origin": "http://localhost:3000"})
    own = await node.http.get("/api/version", headers={"origin": node.url})
    assert (evil.status_code, evil.content) == (403, b"")
    assert (local.status_code, local.headers["access-control-allow-origin"]) == (200, "http://localhost:3000")
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


async def test_a_preflight_is_answered_with_no_content(node: Node) -> None:
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    answer = await node.http.options("/api/chat", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["access-control-max-age"] == "43200"
    assert "Authorization,Content-Type" in answer.headers["access-control-allow-headers"]


# --- errors ---


@pytest.mark.parametrize("case", ERRORS)
async def test_errors_have_the_words_that_clients_look_for(node: Node, case: str) -> None:
    wrong = ERRORS[case]
    status, text = node.says.errors.get(case, (wrong.status, wrong.text))
    body = wrong.body if isinstance(wrong.body, bytes) else msgspec.json.encode(wrong.body)
    answer = await node.http.post(wrong.path, content=body)
    assert answer.status_code == status
    if status == 200:
        return
    if not wrong.path.startswith("/v1/"):
        assert answer.headers["content-type"] == NATIVE_JSON
        assert answer.json() == {"error": text}
        return
    kind = node.says.not_found_type if status == 404 else node.says.bad_request_type
    kind = "invalid_request_error" if wrong.reading else kind
    assert answer.json() == {"error": {"message": text, "type": kind, "param": None, "code": None}}
    assert answer.headers["content-type"] == (NATIVE_JSON if wrong.reading else "application/json")
    assert answer.content.endswith(b"}" if wrong.reading else b"}\n")


# --- inventory ---


async def test_tags_list_each_model_with_its_tag_and_a_bare_digest(node: Node) -> None:
    models: list[dict[str, Any]] = (await node.http.get("/api/tags")).json()["models"]
    assert {model["name"] for model in models} == {CHAT, TOOLS, f"{EMBED}:latest"}
    for model in models:
        assert model.keys() - {"name", "model", "modified_at", "size", "digest", "details"} == node.says.model_fields
        assert model["model"] == model["name"]
        assert re.fullmatch("[0-9a-f]{64}", model["digest"])
        assert {"format", "family", "families", "parameter_size", "quantization_level"} <= model["details"].keys()
        assert datetime.fromisoformat(model["modified_at"]).tzinfo is not None
    seconds = [model["modified_at"][:19] for model in models]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("field", ["model", "name"])
@pytest.mark.parametrize("model", [CHAT, TOOLS, EMBED])
async def test_show_tells_what_a_model_can_do(node: Node, model: str, field: str) -> None:
    answer = await node.http.post("/api/show", json={"model": "", field: model})
    shown = answer.json()
    assert answer.status_code == 200
    assert {"modelfile", "template", "details", "model_info", "modified_at"} <= shown.keys()
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] > 0
    assert shown["model_info"]["tokenizer.ggml.tokens"] in (None, [])
    told = shown.get("capabilities")
    assert (told and set(told)) == (node.says.capabilities and node.says.capabilities[model])


async def test_a_model_is_listed_as_loaded_from_load_to_unload(node: Node) -> None:
    await _unload_all(node)
    load = await node.http.post("/api/generate", json={"model": CHAT})
    (loaded,) = (await node.http.get("/api/ps")).json()["models"]
    unload = await node.http.post("/api/generate", json={"model": CHAT, "keep_alive": 0})
    await _until_unloaded(node, CHAT)

    assert load.headers["content-type"] == unload.headers["content-type"] == NATIVE_JSON
    assert (load.json()["done"], load.json()["done_reason"]) == (True, "load")
    assert (unload.json()["done"], unload.json()["done_reason"]) == (True, "unload")
    assert load.json()["response"] == unload.json()["response"] == ""
    assert not load.content.endswith(b"\n")
    assert loaded["name"] == loaded["model"] == CHAT
    everybody = {"name", "model", "size", "digest", "details", "expires_at", "size_vram"}
    assert loaded.keys() - everybody == node.says.loaded_fields
    assert datetime.fromisoformat(loaded["expires_at"]).timestamp() > time.time()


@pytest.mark.parametrize("keep_alive", [0, "0s", "0m"])
async def test_a_chat_without_messages_unloads_as_well(node: Node, keep_alive: str | int) -> None:
    await _unload_all(node)
    await node.http.post("/api/chat", json={"model": CHAT})
    assert _names(await node.http.get("/api/ps")) == [CHAT]
    answer = await node.http.post("/api/chat", json={"model": CHAT, "messages": [], "keep_alive": keep_alive})
    assert (answer.json()["done_reason"], answer.json()["message"]["content"]) == ("unload", "")
    await _until_unloaded(node, CHAT)


async def test_unloading_what_is_not_loaded_is_no_error(node: Node) -> None:
    await _unload_all(node)
    answer = await node.http.post("/api/generate", json={"model": CHAT, "keep_alive": 0, "stream": True})
    assert (answer.status_code, answer.json()["done_reason"]) == (200, "unload")


async def test_an_explicit_keep_alive_sticks(node: Node) -> None:
    await _unload_all(node)
    await node.http.post("/api/generate", json={"model": CHAT, "keep_alive": -1})
    await node.http.post("/api/chat", json={"model": CHAT, "messages": HI, "stream": False, "options": SHORT})
    (loaded,) = [each for each in (await node.http.get("/api/ps")).json()["models"] if each["name"] == CHAT]
    await _unload_all(node)
    assert loaded["expires_at"] > "2300"


# --- streams ---


async def test_each_line_of_a_stream_is_a_chunk_of_its_own_and_comes_at_once(node: Node) -> None:
    body = {"model": CHAT, "messages": HI, "options": {"num_predict": 20, "temperature": 0}}
    head, chunks = await _chunks(node, "/api/chat", body)
    items = [msgspec.json.decode(chunk.data) for chunk in chunks]
    assert b"content-type: application/x-ndjson" in head
    assert b"content-length" not in head
    assert len(items) > 3
    assert all(chunk.data.endswith(b"}\n") and chunk.data.count(b"\n") == 1 for chunk in chunks)
    # The first line was in our hands before the node made the last one.
    assert chunks[0].at_ns < _ns(items[-1]["created_at"])
    assert [item["done"] for item in items] == [False] * (len(items) - 1) + [True]


async def test_an_old_client_gets_the_stream_unchunked(node: Node) -> None:
    body = {"model": CHAT, "messages": HI, "options": SHORT}
    reader, writer = await _post(node, "/api/chat", body, version="1.0")
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()
    head, _, lines = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert msgspec.json.decode(lines.splitlines()[-1])["done"] is True


@pytest.mark.parametrize(
    ("path", "question", "text_of"),
    [
        ("/api/chat", {"messages": HI}, _chat_text),
        ("/api/generate", {"prompt": "Say hi"}, _generated_text),
    ],
)
async def test_a_stream_and_a_whole_answer_say_the_same(
    node: Node, path: str, question: dict[str, Any], text_of: Any
) -> None:
    body = {"model": CHAT, "options": SHORT | {"seed": 1}} | question
    # Warm up: a cached prompt makes the numbers of the first answer different from those of the second.
    await node.http.post(path, json=body)
    streamed = [msgspec.json.decode(line) for line in (await node.http.post(path, json=body)).content.splitlines()]
    whole_answer = await node.http.post(path, json=body | {"stream": False})
    whole = whole_answer.json()
    assert text_of(whole)
    assert "".join(map(text_of, streamed)) == text_of(whole)
    assert whole_answer.headers["content-type"] == NATIVE_JSON
    for final in (streamed[-1], whole):
        assert final.keys() >= METRICS
        assert (final["done"], final["done_reason"], final["eval_count"]) == (True, "length", 4)
        assert all(isinstance(final[name], int) and final[name] > 0 for name in METRICS)
        assert final["total_duration"] >= final["eval_duration"]
        assert ("context" in final) == (path == "/api/generate")
    assert all(METRICS.isdisjoint(item.keys()) for item in streamed[:-1])


async def test_a_raw_answer_carries_no_context(node: Node) -> None:
    body = {"model": CHAT, "prompt": "1 2 3", "raw": True, "stream": False, "options": SHORT}
    assert "context" not in (await node.http.post("/api/generate", json=body)).json()


async def test_bodies_are_read_as_go_reads_them(node: Node) -> None:
    loose = (
        b'{"MODEL":"%b","Messages":[{"ROLE":"USER","content":"hi"}],"strange":1,"stream":false,"options":{"num_predict":2}}'
        b" {"
    )
    answer = await node.http.post("/api/chat", content=loose % CHAT.encode(), headers={"content-type": "text/plain"})
    assert answer.status_code == 200
    assert answer.json()["done"] is True


@pytest.mark.parametrize("messages", [[None], [{}], [{"role": "user", "content": None}], [None, *HI]])
async def test_messages_that_are_nothing_are_answered_all_the_same(node: Node, messages: list[Any]) -> None:
    asked = {"model": CHAT, "messages": messages, "stream": False, "options": SHORT}
    answer = await node.http.post("/api/chat", json=asked)
    assert (answer.status_code, answer.json()["done"]) == (200, True)


@pytest.mark.parametrize(
    "spelling", ["library/{}", "registry.ollama.ai/library/{}", "http://registry.ollama.ai/library/{}"]
)
async def test_the_answer_echoes_the_name_as_it_was_spelled(node: Node, spelling: str) -> None:
    name = spelling.format(CHAT)
    answer = await node.http.post("/api/chat", json={"model": name, "messages": HI, "stream": False, "options": SHORT})
    assert (answer.status_code, answer.json()["model"]) == (200, name)


@pytest.mark.parametrize("spelling", [" {} ", "{}:local"])
async def test_recent_versions_forgive_more_in_a_name(node: Node, spelling: str) -> None:
    name = spelling.format(CHAT)
    answer = await node.http.post("/api/chat", json={"model": name, "messages": HI, "stream": False, "options": SHORT})
    assert (answer.status_code == 200) == node.says.lax_names


# --- embeddings ---


async def test_vectors_come_in_the_order_of_their_texts_and_one_long(node: Node) -> None:
    texts = [f"text number {number}" for number in range(8)]
    answer = (await node.http.post("/api/embed", json={"model": EMBED, "input": texts})).json()
    single = (await node.http.post("/api/embed", json={"model": EMBED, "input": texts[5]})).json()
    assert answer["model"] == EMBED
    assert len(answer["embeddings"]) == 8
    assert len(single["embeddings"]) == 1
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-3) for vector in answer["embeddings"])
    likeness = [_dot(vector, single["embeddings"][0]) for vector in answer["embeddings"]]
    assert max(range(8), key=likeness.__getitem__) == 5
    assert answer["prompt_eval_count"] > single["prompt_eval_count"] > 0
    assert answer["total_duration"] > 0


@pytest.mark.parametrize("nothing", [{}, {"input": []}, {"input": None}])
async def test_embedding_nothing_gives_no_vectors(node: Node, nothing: dict[str, Any]) -> None:
    answer = await node.http.post("/api/embed", json={"model": EMBED, **nothing})
    assert (answer.status_code, answer.json()) == (200, {"model": EMBED, "embeddings": []})
    assert f"{EMBED}:latest" in _names(await node.http.get("/api/ps"))


async def test_the_legacy_route_gives_the_same_direction_at_another_length(node: Node) -> None:
    old = (await node.http.post("/api/embeddings", json={"model": EMBED, "prompt": "one"})).json()
    new = (await node.http.post("/api/embed", json={"model": EMBED, "input": "one"})).json()
    length = math.hypot(*old["embedding"])
    assert old.keys() == {"embedding"}
    assert length > 2
    assert _dot(old["embedding"], new["embeddings"][0]) == pytest.approx(length, rel=1e-3)
    assert (await node.http.post("/api/embeddings", json={"model": EMBED})).json() == {"embedding": []}


async def test_openai_vectors_come_in_order_with_usage(node: Node) -> None:
    answer = await node.http.post("/v1/embeddings", json={"model": EMBED, "input": ["one", "two"]})
    native = (await node.http.post("/api/embed", json={"model": EMBED, "input": ["one", "two"]})).json()["embeddings"]
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert (body["object"], body["model"]) == ("list", EMBED)
    assert [(each["object"], each["index"]) for each in body["data"]] == [("embedding", 0), ("embedding", 1)]
    for ours, theirs in zip(body["data"], native, strict=True):
        assert ours["embedding"] == pytest.approx(theirs, abs=1e-3)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


async def test_openai_vectors_can_be_packed(node: Node) -> None:
    asked = {"model": EMBED, "input": "one"}
    plain = (await node.http.post("/v1/embeddings", json=asked)).json()["data"][0]["embedding"]
    packed = (await node.http.post("/v1/embeddings", json=asked | {"encoding_format": "base64"})).json()["data"][0][
        "embedding"
    ]
    if node.says.base64_vectors:
        packed = struct.unpack(f"<{len(plain)}f", base64.b64decode(packed))
    assert list(packed) == pytest.approx(plain, abs=1e-3)


async def test_vectors_can_be_shortened(node: Node) -> None:
    asked = {"model": EMBED, "input": "one", "dimensions": 10}
    (vector,) = (await node.http.post("/api/embed", json=asked)).json()["embeddings"]
    assert (len(vector) == 10) == node.says.dimensions


# --- OpenAI dialect ---


async def test_openai_models_are_those_on_disk(node: Node) -> None:
    answer = await node.http.get("/v1/models")
    entries = answer.json()["data"]
    assert answer.headers["content-type"] == "application/json"
    assert {entry["id"] for entry in entries} == {CHAT, TOOLS, f"{EMBED}:latest"}
    assert all(
        (entry["object"], entry["owned_by"]) == ("model", "library") and entry["created"] > 0 for entry in entries
    )
    assert (await node.http.get(f"/v1/models/{CHAT}")).json()["id"] == CHAT
    missing = await node.http.get("/v1/models/nope")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, node.says.not_found_type)


async def test_an_openai_answer_counts_its_tokens(node: Node) -> None:
    answer = await node.http.post("/v1/chat/completions", json={"model": CHAT, "messages": HI, "max_tokens": 4})
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert answer.content.endswith(b"\n")
    assert re.fullmatch(r"chatcmpl-\d+", body["id"])
    assert (body["object"], body["model"], body["system_fingerprint"]) == ("chat.completion", CHAT, "fp_ollama")
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["message"]["role"]) == (0, "length", "assistant")
    usage = body["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4


@pytest.mark.parametrize("usage", [True, False])
async def test_an_openai_stream_has_its_parts_in_order(node: Node, usage: bool) -> None:
    asked = {"model": CHAT, "messages": HI, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": usage}}
    head, chunks = await _chunks(node, "/v1/chat/completions", asked)
    assert b"content-type: text/event-stream\r\n" in head + b"\r\n"
    # One chunk for each token; the finish, the usage and the end then share one.
    assert [chunk.data.count(b"data: ") for chunk in chunks] == [1] * (len(chunks) - 1) + [3 if usage else 2]
    *events, done, end = b"".join(chunk.data for chunk in chunks).decode().split("\n\n")
    bodies = [msgspec.json.decode(event.removeprefix("data: ")) for event in events]
    assert (done, end) == ("data: [DONE]", "")
    if usage:
        last = bodies.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 4
    *contents, finish = [body["choices"][0] for body in bodies]
    roles = [content["delta"].get("role") for content in contents]
    assert roles == ["assistant"] + ["assistant" if node.says.role_in_every_chunk else None] * (len(contents) - 1)
    assert all(content["delta"]["content"] and content["finish_reason"] is None for content in contents)
    assert (finish["delta"], finish["finish_reason"]) == (node.says.finish_delta, "length")
    assert len({body["id"] for body in bodies}) == 1
    assert all("usage" not in body for body in bodies)


@pytest.mark.parametrize("usage", [True, False])
async def test_an_openai_completion_stream_carries_zeros_until_the_end(node: Node, usage: bool) -> None:
    asked = {"model": CHAT, "prompt": "a", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": usage}}
    answer = await node.http.post("/v1/completions", json=asked)
    *events, done, _ = answer.text.split("\n\n")
    bodies = [msgspec.json.decode(event.removeprefix("data: ")) for event in events]
    assert done == "data: [DONE]"
    if usage:
        assert bodies.pop()["usage"]["completion_tokens"] == 3
    assert all(("usage" in body) == usage and not any(body.get("usage", {}).values()) for body in bodies)
    assert [body["choices"][0]["finish_reason"] for body in bodies] == [None] * (len(bodies) - 1) + ["length"]
    assert all(body["object"] == "text_completion" for body in bodies)


async def test_an_empty_completion_loads_the_model(node: Node) -> None:
    await _unload_all(node)
    body = (await node.http.post("/v1/completions", json={"model": CHAT, "prompt": ""})).json()
    assert body["choices"][0] == {"text": "", "index": 0, "finish_reason": "load"}
    assert CHAT in _names(await node.http.get("/api/ps"))


async def test_tools_are_accepted_where_the_model_knows_them(node: Node) -> None:
    tools = [{"type": "function", "function": TOOL_FUNCTION}]
    answer = await node.http.post(
        "/api/chat", json={"model": TOOLS, "messages": HI, "tools": tools, "stream": False, "options": SHORT}
    )
    assert (answer.status_code, answer.json()["message"]["role"]) == (200, "assistant")


# --- concurrency ---


async def test_one_slot_serves_in_order_of_arrival(node: Node) -> None:
    async with _endless(node, tokens=40) as first:
        lines = first.aiter_lines()
        await anext(lines)
        second = asyncio.create_task(
            node.http.post("/api/chat", json={"model": CHAT, "messages": HI, "stream": False, "options": SHORT})
        )
        *_, last = [msgspec.json.decode(line) async for line in lines]
        later = (await second).json()
    assert last["done"] is True
    assert _ns(later["created_at"]) > _ns(last["created_at"])
    # Waiting in the node's own queue counts as part of the whole, not of the generation.
    assert later["total_duration"] > later["eval_duration"] + later["prompt_eval_duration"]


async def test_a_client_that_leaves_stops_the_generation(node: Node) -> None:
    async with _endless(node, tokens=4000) as stream:
        lines = stream.aiter_lines()
        for _ in range(3):
            await anext(lines)
    # The rest would have taken 20 s at the least, and the only slot with it.
    async with asyncio.timeout(10):
        body = {"model": CHAT, "messages": HI, "stream": False, "options": SHORT}
        assert (await node.http.post("/api/chat", json=body)).status_code == 200


def _client(url: str) -> httpx.AsyncClient:
    # Certificates that nobody needs here take 40 ms to load.
    return httpx.AsyncClient(base_url=url, timeout=60, verify=False, trust_env=False)


def _endless(node: Node, *, tokens: int) -> Any:
    """A stream of that many tokens: counting on is what the small model never gets tired of."""
    numbers = " ".join(map(str, range(30)))
    options = {"num_predict": tokens, "temperature": 0}
    body = {"model": CHAT, "prompt": numbers, "raw": True, "options": options}
    return node.http.stream("POST", "/api/generate", json=body)


async def _unload_all(node: Node) -> None:
    """Start from nothing: models of the same weights share a runner, listed under the name that loaded it."""
    for name in _names(await node.http.get("/api/ps")):
        path = "/api/embed" if EMBED in name else "/api/generate"
        await node.http.post(path, json={"model": name, "keep_alive": 0})
        await _until_unloaded(node, name)


async def _until_unloaded(node: Node, name: str) -> None:
    """The answer to an unload comes at once, the unload itself a moment later."""
    async with asyncio.timeout(DEADLINE_S):
        while name in _names(await node.http.get("/api/ps")):  # noqa: ASYNC110 -- another process, no event
            await asyncio.sleep(0.02)


def _names(ps: httpx.Response) -> list[str]:
    return [model["name"] for model in ps.json()["models"]]


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _ns(rfc3339: str) -> int:
    """Nanoseconds since the epoch; Go writes up to nine decimals and drops zeros at the end."""
    whole, _, rest = rfc3339.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(rest.ljust(9, "0") or 0)


async def _post(
    node: Node, path: str, body: dict[str, Any], *, version: str = "1.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request without a client library, which would hide how the answer is framed."""
    address = httpx.URL(node.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    raw = msgspec.json.encode(body)
    head = f"POST {path} HTTP/{version}\r\nHost: {address.netloc.decode()}\r\nContent-Length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    return reader, writer


async def _chunks(node: Node, path: str, body: dict[str, Any]) -> tuple[bytes, list[Chunk]]:
    """The head in lower case, and the chunks as the node cut them."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await _post(node, path, body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        chunks: list[Chunk] = []
        while size := int(await reader.readline(), 16):
            data = await reader.readexactly(size + 2)
            chunks.append(Chunk(data[:-2], time.time_ns()))
        writer.close()
        return head, chunks
