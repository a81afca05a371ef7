"""One request through a real router to a fake node, in every way it can end."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from events.sqlite import driver
from events.types import (
    NodeJoined,
    RequestAttemptFailed,
    RequestDispatched,
    RequestEnqueued,
    RequestFinished,
    RequestFirstToken,
    RequestReceived,
    RouteChosen,
)
from herd import logs
from tests.end_to_end.world import Fleet, fleet
from tests.fakes.heartbeat import heartbeat_of
from tests.fakes.ollama import FakeOllama

ROUTES = [
    ("/api/chat", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/api/generate", {"prompt": "hello"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/v1/completions", {"prompt": "hello"}),
]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def rows(found: Fleet, query: str) -> list[tuple[Any, ...]]:
    connection = driver.connect(found.home / "latency.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_an_answer_is_the_nodes_own_bytes(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        asked = {"model": "llama3:8b", "stream": False, **body}
        answer = await found.client.post(path, json=asked)
        direct = await found.client.post(found.nodes["node-0"].url + path, json=asked)
        assert answer.status_code == 200
        assert answer.json().keys() == direct.json().keys()
        assert answer.headers["content-type"] == direct.headers["content-type"]
        assert answer.headers["x-fleet-node"] == "node-0"
        assert answer.headers["x-fleet-retries"] == "0"
        chosen = (await found.events(RouteChosen))[0]
        assert answer.headers["x-request-id"] == chosen.request
        assert answer.headers["x-fleet-score"] == str(int(chosen.score))


async def test_the_node_sees_the_clients_bytes(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        body = b'{ "stream":false,"unknown":9007199254740993, "model":"llama3:8b",'
        body += b'"messages":[{"content":"\\u00e9","role":"user"}]}'
        await found.client.post(
            "/api/chat", content=body, headers={"authorization": "Bearer secret", "user-agent": "me/1"}
        )
        seen = found.nodes["node-0"].asked("/api/chat")[0]
        assert seen.body == body
        assert "authorization" not in dict(seen.headers)
        assert dict(seen.headers)["user-agent"] == "me/1"


async def test_a_request_leaves_its_whole_story_in_the_log(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        answer = await found.client.post(
            "/api/chat",
            json={
                "model": "llama3:8b",
                "messages": [{"role": "user", "content": "x" * 400}],
                "metadata": {"tags": ["a"]},
                "stream": False,
            },
            headers={"X-Herd-Tags": "b, a"},
        )
        request = answer.headers["x-request-id"]
        story = [recorded.event for recorded in await found.log() if recorded.stream == f"request/{request}"]
        assert [type(event) for event in story] == [RequestReceived, RouteChosen, RequestDispatched, RequestFinished]
        received, chosen, dispatched, finished = story
        assert isinstance(received, RequestReceived)
        assert received.tokens_estimated == 104
        assert received.tags == ("a", "b")
        assert received.client == "127.0.0.1"
        assert isinstance(chosen, RouteChosen)
        assert chosen.signals[0] == "thermal"
        assert len(chosen.candidates[0].points) == len(chosen.signals) == 7
        assert isinstance(dispatched, RequestDispatched)
        assert dispatched.changes[0].field == "metadata, fallback_models"
        assert isinstance(finished, RequestFinished)
        assert finished.outcome == "completed"
        assert finished.completion_tokens == 8
        assert finished.finish_reason == "stop"
        assert "x" * 20 not in str(story)
        assert b"metadata" not in found.nodes["node-0"].asked("/api/chat")[0].body


async def test_a_stream_arrives_line_by_line(tmp_path: Path) -> None:
    node = FakeOllama(tokens=4)
    async with fleet(tmp_path, [node]) as found:
        node.faults.stall_after_lines = 2
        body = {"model": "llama3:8b", "messages": [{"role": "user", "content": "hello"}]}
        got: list[dict[str, Any]] = []
        async with found.client.stream("POST", "/api/chat", json=body) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            async for line in answer.aiter_lines():
                got.append(json.loads(line))
                if len(got) == 2:  # both are here although the node holds back the rest
                    node.faults.clear()
        assert [item["done"] for item in got] == [False] * 4 + [True]
        assert len(await found.events(RequestFirstToken)) == 1


async def retried(found: Fleet, **body: Any) -> httpx.Response:
    """Ask until the seeded draw among equal nodes falls on the bad one first; return that answer."""
    for _ in range(60):
        answer = await found.chat(**body)
        assert answer.status_code == 200
        assert answer.headers["x-fleet-node"] == "node-1"
        if answer.headers["x-fleet-retries"] == "1":
            return answer
    raise AssertionError("the bad node was never chosen")


async def test_a_node_that_refuses_is_replaced_by_another(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(), FakeOllama()]) as found:
        found.nodes["node-0"].faults.refuse = True
        answer = await retried(found)
        failed = await found.events(RequestAttemptFailed)
        assert [event.request for event in failed] == [answer.headers["x-request-id"]]
        assert failed[0].node == "node-0"
        assert failed[0].cause in ("connect", "reset")


@pytest.mark.parametrize("fault", ["reset_before_head", "garbage", "busy", "refuse"])
async def test_a_failure_before_the_first_byte_ends_in_one_error_and_one_ending(tmp_path: Path, fault: str) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        setattr(found.nodes["node-0"].faults, fault, True)
        answer = await found.chat()
        assert answer.status_code in (502, 503)
        assert isinstance(answer.json()["error"], str)
        finished = await found.events(RequestFinished)
        assert [event.outcome for event in finished] == ["failed"]
        assert rows(found, "SELECT status, error_message <> '' FROM request_traces WHERE status = 'failed'") == [
            ("failed", 1)
        ]
        assert found.open_requests == 0


async def test_a_lying_inventory_is_found_out(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(), FakeOllama()]) as found:
        found.nodes["node-0"].faults.missing = ("llama3:8b",)
        await retried(found)
        assert [event.status for event in await found.events(RequestAttemptFailed)] == [404]


async def test_a_clients_own_mistake_is_told_once_and_not_retried(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(), FakeOllama()]) as found:
        answer = await found.chat(think=True)
        assert answer.status_code == 400
        assert "does not support thinking" in answer.json()["error"]
        assert len(await found.events(RouteChosen)) == 1


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_node_that_dies_mid_stream_ends_in_an_error_inside_the_stream(tmp_path: Path, path: str) -> None:
    nodes = [FakeOllama(tokens=6), FakeOllama(tokens=6)]
    async with fleet(tmp_path, nodes) as found:
        for node in nodes:
            node.faults.reset_after_lines = 3
        answer = await found.chat(path=path, stream=True)
        assert answer.status_code == 200
        last = [line for line in answer.text.splitlines() if line][-1].removeprefix("data: ")
        error = json.loads(last)["error"]
        assert "broke off" in (error if path.startswith("/api") else error["message"])
        assert "[DONE]" not in answer.text
        finished = (await found.events(RequestFinished))[0]
        assert finished.outcome == "failed"
        assert len(await found.events(RouteChosen)) == 1


async def test_a_stream_that_ends_before_it_began_is_asked_elsewhere(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(), FakeOllama()]) as found:
        found.nodes["node-0"].faults.end_after_lines = 0
        for _ in range(60):
            answer = await found.chat(stream=True)
            assert lines(answer.text)[-1]["done"] is True
            if answer.headers["x-fleet-retries"] == "1":
                return
    raise AssertionError("the bad node was never chosen")


@pytest.mark.parametrize("status", [204, 302])
async def test_a_success_that_is_no_answer_is_a_failure(tmp_path: Path, status: int) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        found.nodes["node-0"].faults.status = status
        answer = await found.chat()
        assert answer.status_code == 502
        assert str(status) in answer.json()["error"]
        finished = (await found.events(RequestFinished))[0]
        assert (finished.outcome, finished.attempts) == ("failed", 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "value"),
    [
        ("status", 600),
        ("status", 999),
        ("web_page", True),
        ("endless_head", True),
        ("head_byte_delay_ms", 100.0),
    ],
)
async def test_what_no_engine_answers_is_asked_elsewhere_and_else_told_as_an_error(
    tmp_path: Path, fault: str, value: Any, stream: bool
) -> None:
    nodes = [FakeOllama(), FakeOllama()]
    async with fleet(tmp_path, nodes, read_timeout=0.5) as found:
        setattr(nodes[0].faults, fault, value)
        await retried(found, stream=stream)
        assert {event.node for event in await found.events(RequestAttemptFailed)} == {"node-0"}
        setattr(nodes[1].faults, fault, value)
        answer = await found.chat(stream=stream)
        assert answer.status_code in (502, 504)
        assert isinstance(answer.json()["error"], str)
        assert (await found.events(RequestFinished))[-1].outcome == "failed"
        assert (found.open_requests, found.in_flight) == (0, 0)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_an_endless_reason_passes_and_does_not_swell_the_log(tmp_path: Path, path: str) -> None:
    node = FakeOllama()
    async with fleet(tmp_path, [node]) as found:
        node.faults.big_reason_bytes = 2 << 20
        answer = await found.chat(path=path, stream=True)
        assert b"x" * (1 << 20) in answer.content
        finished = (await found.events(RequestFinished))[0]
        assert finished.outcome == "completed"
        assert len(finished.finish_reason or "") < 1000


async def test_a_stream_that_ends_without_done_passes_as_it_is_and_counts_as_incomplete(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(tokens=6)]) as found:
        found.nodes["node-0"].faults.end_after_lines = 3
        answer = await found.chat(stream=True)
        assert [item["done"] for item in lines(answer.text)] == [False] * 3
        assert [event.outcome for event in await found.events(RequestFinished)] == ["incomplete"]


async def test_an_error_line_of_the_node_passes_and_counts_as_failed(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(tokens=6)]) as found:
        found.nodes["node-0"].faults.error_after_lines = 2
        answer = await found.chat(stream=True)
        assert lines(answer.text)[-1] == {"error": found.nodes["node-0"].faults.error_text}
        assert [event.outcome for event in await found.events(RequestFinished)] == ["failed"]


async def test_a_silent_node_is_given_up_after_the_read_timeout(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(), FakeOllama()], read_timeout=0.2) as found:
        found.nodes["node-0"].faults.hang = True
        await retried(found)
        assert {event.cause for event in await found.events(RequestAttemptFailed)} == {"timeout"}


async def test_a_client_that_leaves_frees_its_slot_and_stops_the_model(tmp_path: Path) -> None:
    node = FakeOllama(tokens=10_000, delay_ms=5)
    async with fleet(tmp_path, [node]) as found:
        body = {"model": "llama3:8b", "messages": [{"role": "user", "content": "hello"}]}
        async with found.client.stream("POST", "/api/chat", json=body) as answer:
            await anext(answer.aiter_lines())
            assert found.in_flight == 1
        await found.until(lambda: found.open_requests == 0)
        assert found.in_flight == 0
        await node.until(lambda: node.scheduler.running.total() == 0)
        assert [event.outcome for event in await found.events(RequestFinished)] == ["cancelled"]


async def test_a_client_that_leaves_an_unstreamed_request_stops_the_model_too(tmp_path: Path) -> None:
    node = FakeOllama(tokens=10_000, delay_ms=5)
    async with fleet(tmp_path, [node]) as found:
        with pytest.raises(httpx.ReadTimeout):
            await found.client.post(
                "/api/chat",
                json={"model": "llama3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False},
                timeout=0.3,
            )
        await found.until(lambda: found.open_requests == 0)
        await node.until(lambda: node.scheduler.running.total() == 0)
        assert len(node.asked("/api/chat")) == 1
        assert [event.outcome for event in await found.events(RequestFinished)] == ["cancelled"]


async def test_no_node_gets_more_than_it_runs_at_once_and_the_line_is_first_come(tmp_path: Path) -> None:
    node = FakeOllama(tokens=2, num_parallel=2)
    async with fleet(tmp_path, [node]) as found:
        node.faults.hang = True
        waiting = [asyncio.create_task(found.chat()) for _ in range(5)]
        await found.until(lambda: found.open_requests == 5)
        assert found.in_flight == 2
        queue = (await found.status())["queues"]["node-0:llama3:8b"]
        assert (queue["in_flight"], queue["pending"], queue["concurrency"]) == (2, 3, 2)
        assert (await found.status())["fleet"]["requests_active"] == 2
        enqueued = [event.request for event in await found.events(RequestEnqueued)]
        for task in waiting[:2]:
            task.cancel()
        await found.until(lambda: found.in_flight == 2 and found.open_requests == 3)
        dispatched = [event.request for event in await found.events(RequestDispatched)]
        assert dispatched[2:] == enqueued[:2]
        for task in waiting[2:]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await found.until(lambda: found.open_requests == 0)
        assert found.in_flight == 0
        assert node.scheduler.peak["llama3:8b"] <= 2


async def test_a_full_queue_says_so_in_ollamas_words(tmp_path: Path) -> None:
    node = FakeOllama()
    async with fleet(tmp_path, [node], max_queue=1) as found:
        node.faults.hang = True
        waiting = [asyncio.create_task(found.chat()) for _ in range(2)]
        await found.until(lambda: found.open_requests == 2)
        answer = await found.chat()
        assert answer.status_code == 503
        assert answer.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
        assert int(answer.headers["retry-after"]) > 0
        openai = await found.chat(path="/v1/chat/completions")
        assert openai.json()["error"]["type"] == "api_error"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_ends_at_its_deadline(tmp_path: Path) -> None:
    node = FakeOllama()
    async with fleet(tmp_path, [node], queue_timeout=0.1) as found:
        node.faults.hang = True
        first = asyncio.create_task(found.chat())
        await found.until(lambda: found.in_flight == 1)
        answer = await found.chat()
        assert answer.status_code == 503
        assert "free slot" in answer.json()["error"]
        assert [event.outcome for event in await found.events(RequestFinished)] == ["expired"]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_deadline_is_for_all_lines_together(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()], queue_timeout=0.3) as found:
        found.nodes["node-0"].faults.hang = True
        first = asyncio.create_task(found.chat())
        await found.until(lambda: found.in_flight == 1)
        waiting = asyncio.create_task(found.chat())
        await found.until(lambda: found.open_requests == 2)
        node = found.router.core.view.fleet.nodes["node-0"]
        for _ in range(200):  # the node joins again and again, and each time the request stands in line anew
            found.router.core.record(NodeJoined(node="node-0", url=node.url, parallel=1))
            await asyncio.sleep(0.01)
            if waiting.done():
                break
        assert waiting.done(), "each line had a deadline of its own"
        assert (await waiting).status_code == 503
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_those_who_wait_for_a_node_that_drains_are_sent_to_another(tmp_path: Path) -> None:
    nodes = [FakeOllama(), FakeOllama(models=["other:1b"])]
    async with fleet(tmp_path, nodes) as found:
        nodes[0].faults.hang = True
        running = asyncio.create_task(found.chat())
        await found.until(lambda: found.in_flight == 1)
        waiting = asyncio.create_task(found.chat())
        await found.until(lambda: found.open_requests == 2)
        nodes[1].models |= nodes[0].models
        await found.report()
        await found.client.post("/heartbeat", json={"node_id": "node-0", "draining": True})
        answer = await waiting
        assert answer.headers["x-fleet-node"] == "node-1"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_unknown_model_is_404_and_one_whose_holder_is_away_is_503(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        answer = await found.chat("nope")
        assert (answer.status_code, answer.json()) == (404, {"error": "model 'nope' not found"})
        await found.client.post("/heartbeat", json={"node_id": "node-0", "draining": True})
        answer = await found.chat()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0


async def test_an_embedding_model_does_not_chat(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(models=["nomic-embed-text"])]) as found:
        answer = await found.chat("nomic-embed-text")
        assert answer.status_code == 400
        assert answer.json()["error"] == '"nomic-embed-text" does not support chat'
        embedded = await found.client.post("/api/embed", json={"model": "nomic-embed-text", "input": ["a", "b"]})
        assert len(embedded.json()["embeddings"]) == 2


@pytest.mark.parametrize(
    ("needed", "asked"),
    [("tools", {"tools": [{"type": "function"}]}), ("vision", {"messages": [{"content": "hi", "images": ["aGk="]}]})],
)
async def test_what_a_model_lacks_is_named(tmp_path: Path, needed: str, asked: dict[str, Any]) -> None:
    async with fleet(tmp_path, [FakeOllama(models=["llama3:8b@completion"])]) as found:
        answer = await found.chat(**asked)
        assert answer.status_code == 400
        assert answer.json()["error"] == f"registry.ollama.ai/library/llama3:8b does not support {needed}"


async def test_a_prompt_too_long_for_one_node_is_asked_of_another(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(), FakeOllama()]) as found:
        faults = found.nodes["node-0"].faults
        faults.status, faults.status_text = 400, "request (9 tokens) exceeds the available context size (8 tokens)"
        await retried(found)


async def test_a_model_whose_engine_names_no_expiry_stays_and_is_not_about_to_leave(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        await found.chat()
        await found.report()  # the body of the peer's agents has no expiry
        (loaded,) = (await found.client.get("/api/ps")).json()["models"]
        assert datetime.fromisoformat(loaded["expires_at"]) > datetime.now(UTC) + timedelta(days=36500)


async def test_load_goes_to_the_idle_machine(tmp_path: Path) -> None:
    nodes = [FakeOllama(), FakeOllama()]
    async with fleet(tmp_path, nodes) as found:
        for node in nodes:
            node.faults.hang = True
        waiting = [asyncio.create_task(found.chat()) for _ in range(2)]
        await found.until(lambda: found.in_flight == 2)
        assert [node.in_flight for node in found.router.core.view.fleet.nodes.values()] == [1, 1]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_every_answer_has_an_id(tmp_path: Path) -> None:
    async with fleet(tmp_path) as found:
        for path in ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/fleet/status", "/nope", "/healthz"):
            assert (await found.client.get(path)).headers["x-request-id"], path
        for path in ("/api/chat", "/v1/chat/completions", "/heartbeat"):
            assert (await found.client.post(path, content=b"{")).headers["x-request-id"], path
            assert (await found.client.get(path)).headers["x-request-id"], path


async def test_the_fleet_looks_like_one_ollama(tmp_path: Path) -> None:
    nodes = [FakeOllama(version="0.30.1"), FakeOllama(models=["llama3:8b", "phi4"], version="0.33.0")]
    async with fleet(tmp_path, nodes) as found:
        assert (await found.client.get("/")).text == "Ollama is running"
        assert (await found.client.head("/")).status_code == 200
        assert (await found.client.get("/api/version")).json()["version"] == "0.30.1"
        tags = {model["name"]: model for model in (await found.client.get("/api/tags")).json()["models"]}
        assert set(tags) == {"llama3:8b", "phi4:latest"}
        assert tags["llama3:8b"]["details"]["fleet_nodes"] == ["node-0", "node-1"]
        await found.chat()
        await found.report()
        loaded = (await found.client.get("/api/ps")).json()["models"]
        assert [model["name"] for model in loaded] == ["llama3:8b"]
        assert [model["id"] for model in (await found.client.get("/v1/models")).json()["data"]] == [
            "llama3:8b",
            "phi4:latest",
        ]


async def test_status_has_what_the_skill_page_promises(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        await found.chat()
        await found.report()
        status = await found.status()
        assert status["fleet"].keys() >= {"nodes_total", "nodes_online", "models_loaded", "requests_active"}
        node = status["nodes"][0]
        assert node.keys() >= {"node_id", "status", "hardware", "memory", "cpu", "disk", "ollama", "ollama_url"}
        assert node["ollama"]["models_loaded"][0]["context_length"] == 4096
        assert node["disk"]["available_gb"] == pytest.approx(600.0)
        queue = status["queues"]["node-0:llama3:8b"]
        assert queue.keys() >= {"pending", "in_flight", "completed", "failed", "concurrency"}
        assert queue["completed"] == 1


async def test_traces_are_there_as_soon_as_the_answer_is(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        answer = await found.chat()
        traces = (await found.client.get("/dashboard/api/traces?limit=5")).json()["traces"]
        assert traces[0]["request_id"] == answer.headers["x-request-id"]
        assert traces[0]["status"] == "completed"
        assert traces[0]["node_id"] == "node-0"
        for query in ("limit=x", "limit=0", "limit=-1", f"limit={'9' * 5000}", "status=bogus", "status="):
            refused = await found.client.get(f"/dashboard/api/traces?{query}")
            assert refused.status_code == 400
            assert f"{query.partition('=')[0]} must be " in refused.json()["error"]


async def test_health_tells_of_the_log(tmp_path: Path) -> None:
    async with fleet(tmp_path) as found:
        health = (await found.client.get("/healthz")).json()
        assert health["status"] == "ok"
        assert health["log"]["head"] >= 2


async def test_the_log_file_names_request_node_and_model(tmp_path: Path) -> None:
    logs.configure(tmp_path, file_level="DEBUG", console_level="CRITICAL")
    try:
        async with fleet(tmp_path, [FakeOllama()]) as found:
            found.nodes["node-0"].faults.reset_before_head = True
            answer = await found.chat()
    finally:
        logs.shutdown()
    told = [json.loads(line) for line in (tmp_path / "logs" / "herd.jsonl").read_text().splitlines()]
    about = [line for line in told if line.get("request_id") == answer.headers["x-request-id"]]
    assert about
    assert {(line["node_id"], line["model"]) for line in about} == {("node-0", "llama3:8b")}
    assert any(line.get("node_id") == "node-0" and "joined" in line["msg"] for line in told)


async def test_a_route_of_ollama_that_is_not_served_says_so_in_ollamas_shape(tmp_path: Path) -> None:
    async with fleet(tmp_path) as found:
        answer = await found.client.post("/api/show", json={"model": "x"})
        assert answer.status_code == 501
        assert "/api/show" in answer.json()["error"]
        assert (await found.client.get("/nope")).text == "404 page not found"


async def test_what_no_copy_of_a_model_can_do_is_the_clients_fault_even_if_one_copy_is_away(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(), FakeOllama()]) as found:
        await found.client.post("/heartbeat", json=heartbeat_of(found.nodes["node-1"], "node-1", leaving=True))
        answer = await found.client.post(
            "/api/generate", json={"model": "llama3:8b", "prompt": "what is this?", "images": ["aGk="]}
        )
        assert answer.status_code == 400
        assert answer.json()["error"] == "registry.ollama.ai/library/llama3:8b does not support vision"
