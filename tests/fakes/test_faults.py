"""Tests of the router stand on these faults; one that did not happen would make them pass for nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from tests.fakes.connection import Reply, Request
from tests.fakes.ollama import FakeOllama
from tests.fakes.openai_server import FakeOpenAI

QUESTION: dict[str, Any] = {"model": "llama3:8b", "messages": [{"role": "user", "content": "one two three"}]}
WHOLE = QUESTION | {"stream": False}


def client_of(node: FakeOllama | FakeOpenAI) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=node.url, timeout=5, verify=False, trust_env=False)


@pytest.fixture
async def node() -> AsyncIterator[FakeOllama]:
    async with FakeOllama(models=["llama3:8b"], tokens=5) as node:
        yield node


@pytest.fixture
async def http(node: FakeOllama) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(node) as http:
        yield http


async def lines_until_broken(http: httpx.AsyncClient) -> tuple[list[dict[str, Any]], bool]:
    """The items of a chat stream, and whether the connection broke."""
    items: list[dict[str, Any]] = []
    try:
        async with http.stream("POST", "/api/chat", json=QUESTION) as answer:
            async for line in answer.aiter_lines():
                items.append(msgspec.json.decode(line))  # noqa: PERF401 -- what came before the break counts
    except (httpx.ReadError, httpx.RemoteProtocolError):
        return items, True
    return items, False


async def test_a_refusing_node_refuses_and_comes_back_at_the_same_address(
    node: FakeOllama, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/")).status_code == 200
    node.faults.refuse = True
    await node.until(lambda: node.connections == 0)
    with pytest.raises(httpx.ConnectError):
        await http.get("/")
    url = node.url
    node.faults.refuse = False
    assert node.url == url
    assert (await http.get("/")).status_code == 200


async def test_a_refusing_node_hangs_up_on_those_it_still_serves_when_their_answer_is_complete(
    node: FakeOllama, http: httpx.AsyncClient
) -> None:
    node.faults.stall_after_lines = 2
    reading = asyncio.create_task(lines_until_broken(http))
    await node.until(lambda: node.generated >= 3)
    node.faults.refuse = True
    assert node.connections == 1
    node.faults.stall_after_lines = None
    items, broken = await reading
    assert (items[-1]["done"], broken) == (True, False)
    await node.until(lambda: node.connections == 0)


async def test_a_dead_node_breaks_the_answers_on_their_way(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.stall_after_lines = 2
    reading = asyncio.create_task(lines_until_broken(http))
    await node.until(lambda: node.generated >= 3)
    node.die()
    items, broken = await reading
    assert broken
    assert len(items) == 2
    with pytest.raises(httpx.ConnectError):
        await http.get("/")


async def test_a_hanging_node_reads_and_says_nothing_until_it_is_cured(
    node: FakeOllama, http: httpx.AsyncClient
) -> None:
    node.faults.hang = True
    asking = asyncio.create_task(http.post("/api/chat", json=WHOLE))
    await node.until(lambda: len(node.seen) == 1)
    assert (await http.get("/api/tags")).status_code == 200
    assert not asking.done()
    node.faults.clear()
    assert (await asking).json()["done"] is True


async def test_a_fault_can_reach_the_inventory_too(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.everywhere = node.faults.reset_before_head = True
    with pytest.raises(httpx.ReadError):
        await http.get("/api/tags")


@pytest.mark.parametrize(
    ("fault", "error"), [("reset_before_head", httpx.ReadError), ("garbage", httpx.RemoteProtocolError)]
)
async def test_a_node_can_fail_before_the_head(
    node: FakeOllama, http: httpx.AsyncClient, fault: str, error: type[Exception]
) -> None:
    setattr(node.faults, fault, True)
    with pytest.raises(error):
        await http.post("/api/chat", json=WHOLE)
    assert node.disconnects == []


async def test_a_fault_can_be_limited_to_some_requests(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.status, node.faults.remaining = 500, 2
    statuses = [(await http.post("/api/chat", json=WHOLE)).status_code for _ in range(3)]
    assert statuses == [500, 500, 200]


async def test_a_reset_comes_after_the_lines_that_were_sent(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.reset_after_lines = 3
    items, broken = await lines_until_broken(http)
    assert (len(items), broken) == (3, True)


async def test_a_clean_end_without_the_final_record(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.end_after_lines = 3
    items, broken = await lines_until_broken(http)
    assert (len(items), broken) == (3, False)
    assert not any(item["done"] for item in items)


async def test_an_error_line_ends_the_stream(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.error_after_lines = 2
    items, broken = await lines_until_broken(http)
    assert items[2:] == [{"error": "an error was encountered while running the model: unexpected EOF"}]
    assert not broken


async def test_a_stalled_stream_goes_on_when_it_is_cured(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.stall_after_lines = 2
    reading = asyncio.create_task(lines_until_broken(http))
    await node.until(lambda: node.generated == 3)
    node.faults.stall_after_lines = None
    items, broken = await reading
    assert (len(items), broken) == (6, False)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/api/chat", {"error": "server busy, please try again.  maximum pending requests exceeded"}),
        ("/v1/chat/completions", {
            "error": {
                "message": "server busy, please try again.  maximum pending requests exceeded", "type": "api_error",
                "param": None, "code": None,
            }
        }),
    ],
)  # fmt: skip
async def test_a_busy_node_says_so_in_the_shape_of_the_route(
    node: FakeOllama, http: httpx.AsyncClient, path: str, error: dict[str, Any]
) -> None:
    node.faults.busy = True
    answer = await http.post(path, json=QUESTION)
    assert (answer.status_code, answer.json()) == (503, error)


async def test_errors_can_lose_their_body(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.empty_error_body = True
    answer = await http.post("/api/chat", json={"model": "nope"})
    assert (answer.status_code, answer.content) == (404, b"")


async def test_a_lying_inventory_lists_what_chat_denies(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.missing = ("llama3:8b",)
    assert (await http.get("/api/tags")).json()["models"][0]["name"] == "llama3:8b"
    answer = await http.post("/api/chat", json=WHOLE)
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'llama3:8b' not found"})


async def test_the_final_line_can_be_a_megabyte(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.big_final_bytes = 1 << 20
    items, broken = await lines_until_broken(http)
    assert not broken
    assert len(items[-1]["message"]["content"]) == 1 << 20
    assert items[-1]["done"] is True


async def test_a_trickled_answer_is_the_same_answer(node: FakeOllama, http: httpx.AsyncClient) -> None:
    plain, _ = await lines_until_broken(http)
    node.faults.trickle = True
    trickled, broken = await lines_until_broken(http)
    assert not broken
    assert [item["message"] for item in trickled] == [item["message"] for item in plain]


async def test_the_content_type_can_lie(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.content_type = "text/html"
    answer = await http.post("/api/chat", json=WHOLE)
    assert (answer.headers["content-type"], answer.json()["done"]) == ("text/html", True)


async def test_a_web_page_can_stand_where_an_answer_should(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.web_page = True
    answer = await http.post("/api/chat", json=WHOLE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text.startswith("<!DOCTYPE html>")
    assert (await http.get("/api/tags")).json()["models"]


@pytest.mark.parametrize("status", [600, 999])
async def test_a_status_may_be_one_that_http_does_not_know(
    node: FakeOllama, http: httpx.AsyncClient, status: int
) -> None:
    node.faults.status = status
    answer = await http.post("/api/chat", json=WHOLE)
    assert (answer.status_code, answer.reason_phrase) == (status, f"status code {status}")
    assert answer.json() == {"error": "the fake node was told to fail"}


async def test_an_encoding_can_be_claimed_that_is_not_there(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.content_encoding = "gzip"
    async with http.stream("POST", "/api/chat", json=WHOLE) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        raw = b"".join([part async for part in answer.aiter_raw()])
    assert msgspec.json.decode(raw)["done"] is True


async def test_a_head_can_trickle(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.head_byte_delay_ms = 3_600_000
    asking = asyncio.create_task(http.post("/api/chat", json=WHOLE))
    await node.until(lambda: node.generated == 5)
    assert not asking.done()
    asking.cancel()
    await node.until(lambda: len(node.disconnects) == 1)
    node.faults.head_byte_delay_ms = 0.01
    assert (await http.post("/api/chat", json=WHOLE)).json()["done"] is True


async def test_a_head_can_be_without_end(node: FakeOllama) -> None:
    node.faults.endless_head = True
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    body = msgspec.json.encode(WHOLE)
    writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    head = await reader.readexactly(300_000)
    writer.close()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n\r\n" not in head
    await node.until(lambda: len(node.disconnects) == 1)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_reason_of_an_end_can_be_long(
    node: FakeOllama, http: httpx.AsyncClient, path: str, stream: bool
) -> None:
    node.faults.big_reason_bytes = 1 << 20
    answer = await http.post(path, json=QUESTION | {"prompt": "one", "stream": stream})
    assert answer.status_code == 200
    assert b'_reason":"stop' + b"x" * ((1 << 20) - 4) + b'"' in answer.content


async def test_the_head_can_be_held_back_with_the_slot_taken(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.first_byte_delay_ms = 3_600_000
    asking = asyncio.create_task(http.post("/api/chat", json=QUESTION))
    await node.until(lambda: node.generated == 1)
    assert node.scheduler.running["llama3:8b"] == 1
    asking.cancel()
    await node.until(lambda: node.scheduler.running["llama3:8b"] == 0)


async def test_a_request_is_kept_byte_for_byte(node: FakeOllama, http: httpx.AsyncClient) -> None:
    body = b'{ "stream":false,"model":"llama3:8b",  "unknown":18446744073709551615 , "messages":[] }'
    await http.post("/api/chat", content=body, headers={"X-Odd": "Value"})
    (request,) = node.asked("/api/chat")
    assert request.body == body
    assert request.header("x-odd") == "Value"


async def test_a_client_that_leaves_is_noticed_and_frees_its_slot(node: FakeOllama, http: httpx.AsyncClient) -> None:
    node.faults.stall_after_lines = 1
    async with http.stream("POST", "/api/chat", json=QUESTION) as answer:
        await anext(answer.aiter_lines())
    await node.until(lambda: len(node.disconnects) == 1)
    await node.until(lambda: node.scheduler.running["llama3:8b"] == 0)


async def test_faults_are_thrown_from_outside_through_the_control_route(
    node: FakeOllama, http: httpx.AsyncClient
) -> None:
    thrown = await http.post("/fault", json={"status": 418, "remaining": 1})
    assert (thrown.json()["status"], thrown.json()["remaining"]) == (418, 1)
    assert (await http.post("/api/chat", json=WHOLE)).status_code == 418
    assert (await http.delete("/fault")).json()["status"] == 0
    for wrong in ({"stall": True}, {"hang": "perhaps"}, {"refuse": True}, {"on_change": 1}):
        assert (await http.post("/fault", json=wrong)).status_code == 400
    seen = (await http.get("/seen")).json()
    assert [request["path"] for request in seen["requests"]] == ["/api/chat"]


def test_a_misspelled_fault_is_an_error() -> None:
    node = FakeOllama()
    with pytest.raises(AttributeError):
        node.faults.stall = True  # pyright: ignore[reportAttributeAccessIssue] -- the point of the test


async def test_a_bug_in_a_fake_is_not_taken_for_a_fault() -> None:
    class Buggy(FakeOllama):
        async def route(self, request: Request, reply: Reply) -> None:
            raise ZeroDivisionError

    node = Buggy()
    await node.__aenter__()
    async with client_of(node) as http:
        with pytest.raises(httpx.ReadError):
            await http.get("/")
    with pytest.raises(ExceptionGroup, match="the fake server itself failed"):
        await node.__aexit__(None, None, None)


async def test_tools_are_called_when_the_prompt_names_them(node: FakeOllama, http: httpx.AsyncClient) -> None:
    function = {"name": "weather", "parameters": {"type": "object", "required": ["city"]}}
    asked = {
        "tools": [{"type": "function", "function": function}],
        "messages": [{"role": "user", "content": "weather here"}],
    }
    native = (await http.post("/api/chat", json=WHOLE | asked)).json()["message"]
    openai = (await http.post("/v1/chat/completions", json=WHOLE | asked)).json()["choices"][0]
    assert native["tool_calls"][0]["function"] == {"index": 0, "name": "weather", "arguments": {"city": "weather here"}}
    assert openai["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"weather here"}'}
    assert openai["finish_reason"] == "tool_calls"


async def test_thinking_comes_first_and_apart() -> None:
    async with FakeOllama(models=["qwen3:4b@completion+thinking"], tokens=1) as node, client_of(node) as http:
        messages = {"model": "qwen3:4b", "messages": [{"role": "user", "content": "hi"}]}
        items = [
            msgspec.json.decode(line) for line in (await http.post("/api/chat", json=messages)).content.splitlines()
        ]
        silent = (await http.post("/api/chat", json=messages | {"think": False, "stream": False})).json()
    assert [item["message"].get("thinking") for item in items] == ["Let", " me", " see.", None, None]
    assert "thinking" not in silent["message"]


async def test_pulling_brings_a_model_of_the_registry_to_disk() -> None:
    async with FakeOllama(models=[], registry=["phi3:mini"]) as node, client_of(node) as http:
        lines = (await http.post("/api/pull", json={"model": "phi3:mini"})).content.splitlines()
        missing = await http.post("/api/pull", json={"model": "nope"})
        unstreamed = await http.post("/api/pull", json={"name": "nope", "stream": False})
        assert list(node.models) == ["phi3:mini"]
        assert (await http.request("DELETE", "/api/delete", json={"name": "phi3:mini"})).status_code == 200
        assert node.models == {}
    assert msgspec.json.decode(lines[-1]) == {"status": "success"}
    assert missing.status_code == 200
    assert msgspec.json.decode(missing.content.splitlines()[-1]) == {
        "error": "pull model manifest: file does not exist"
    }
    assert unstreamed.status_code == 500


# --- the OpenAI server ---


async def test_a_llama_cpp_stream_ends_with_its_timings() -> None:
    async with FakeOpenAI(tokens=3) as node, client_of(node) as http:
        asked = QUESTION | {"stream": True, "stream_options": {"include_usage": True}}
        answer = await http.post("/v1/chat/completions", json=asked)
        *events, done, _ = answer.text.split("\n\n")
        bodies = [msgspec.json.decode(event.removeprefix("data: ")) for event in events]
        first, *contents, finish, usage = bodies
    assert answer.headers["content-type"] == "text/event-stream"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert [content["choices"][0]["delta"] for content in contents] == [
        {"content": "one"},
        {"content": " two"},
        {"content": " three"},
    ]
    assert finish["choices"][0] == {"finish_reason": "stop", "index": 0, "delta": {}}
    assert (usage["choices"], usage["usage"]["completion_tokens"], usage["timings"]["predicted_n"]) == ([], 3, 3)
    assert done == "data: [DONE]"
    assert all(body["model"] == "smollm2" for body in bodies)


async def test_a_llama_cpp_server_serves_its_one_model() -> None:
    async with FakeOpenAI(tokens=3) as node, client_of(node) as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert [entry["id"] for entry in (await http.get("/v1/models")).json()["data"]] == ["smollm2"]
        whole = (await http.post("/v1/chat/completions", json=WHOLE)).json()
        text = (await http.post("/v1/completions", json={"prompt": "a b c"})).json()
        refused = await http.post("/v1/embeddings", json={"input": "a"})
        unreadable = await http.post("/v1/chat/completions", content=b"{")
        lost = await http.get("/api/tags")
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "one two three"}
    assert whole["timings"]["prompt_n"] == 3
    assert text["choices"][0]["text"] == "a b c"
    assert (refused.status_code, refused.json()["error"]["type"]) == (501, "not_supported_error")
    assert (unreadable.status_code, unreadable.json()["error"]["code"]) == (400, 400)
    assert (lost.status_code, lost.json()["error"]["message"]) == (404, "File Not Found")


async def test_a_llama_cpp_embedding_server_gives_vectors_in_order_and_no_chat() -> None:
    async with FakeOpenAI(embedding=True) as node, client_of(node) as http:
        data = (await http.post("/v1/embeddings", json={"input": ["a", "b"]})).json()["data"]
        single = (await http.post("/v1/embeddings", json={"input": "b"})).json()["data"]
        chat = await http.post("/v1/chat/completions", json=WHOLE)
    assert [entry["index"] for entry in data] == [0, 1]
    assert data[1]["embedding"] == single[0]["embedding"] != data[0]["embedding"]
    assert chat.status_code == 500


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_openai_server_gives_a_long_reason_too(path: str, stream: bool) -> None:
    async with FakeOpenAI(tokens=5) as node, client_of(node) as http:
        node.faults.big_reason_bytes = 1 << 20
        answer = await http.post(path, json=QUESTION | {"prompt": "one", "stream": stream})
    assert b'"finish_reason":"stop' + b"x" * ((1 << 20) - 4) + b'"' in answer.content


async def test_openai_streams_break_as_native_ones_do() -> None:
    async with FakeOpenAI(tokens=5) as node, client_of(node) as http:
        node.faults.end_after_lines = 3
        answer = await http.post("/v1/chat/completions", json=QUESTION | {"stream": True})
    assert answer.text.count("data: ") == 3
    assert "[DONE]" not in answer.text
