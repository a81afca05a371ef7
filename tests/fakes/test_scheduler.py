"""Placement is judged by what happens inside the nodes, so queues, loads and evictions there must be true to life."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.fakes.heartbeat import heartbeat_of
from tests.fakes.ollama import FakeOllama
from tests.fakes.scheduler import FakeModel
from tests.fakes.test_faults import client_of


def ask(http: httpx.AsyncClient, model: str, **more: Any) -> "asyncio.Task[httpx.Response]":
    question = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": False}
    return asyncio.create_task(http.post("/api/chat", json=question | more))


async def test_a_slot_is_for_one_request_and_the_others_wait_in_order() -> None:
    async with FakeOllama(models=["a"], num_parallel=2) as node, client_of(node) as http:
        node.faults.first_byte_delay_ms = 3_600_000
        tasks = [ask(http, "a") for _ in range(5)]
        await node.until(lambda: node.scheduler.running["a:latest"] == 2 and node.scheduler.waiting["a:latest"] == 3)
        node.faults.first_byte_delay_ms = 0
        for task in tasks[:2]:
            task.cancel()
        answers = await asyncio.gather(*tasks[2:])
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert node.scheduler.peak["a:latest"] == 2
        assert node.scheduler.loads["a:latest"] == 1


async def test_a_changed_context_reloads_and_an_equal_one_does_not() -> None:
    async with FakeOllama(models=["a"]) as node, client_of(node) as http:
        for num_ctx in (2048, 2048, 4096, 2048):
            await ask(http, "a", options={"num_ctx": num_ctx, "temperature": num_ctx / 4096})
        assert node.scheduler.loads["a:latest"] == 3
        await ask(http, "a", options={"num_ctx": 99_999_999})
        await ask(http, "a", options={"num_ctx": 8192})
        assert node.scheduler.loads["a:latest"] == 4
        assert node.scheduler.loaded[0].num_ctx == 8192


async def test_the_model_used_longest_ago_makes_room() -> None:
    async with FakeOllama(models=["a", "b", "c"], max_loaded=2) as node, client_of(node) as http:
        for model in ("a", "b", "a", "c"):
            await ask(http, model)
        assert {each.model.name for each in node.scheduler.loaded} == {"a:latest", "c:latest"}
        assert node.scheduler.evictions == {"b:latest": 1}


async def test_a_busy_model_is_drained_before_it_makes_room() -> None:
    async with FakeOllama(models=["a", "b"], max_loaded=1) as node, client_of(node) as http:
        node.faults.stall_after_lines = 1
        streaming = ask(http, "a", stream=True)
        await node.until(lambda: node.scheduler.running["a:latest"] == 1)
        other = ask(http, "b")
        await node.until(lambda: node.scheduler.waiting["b:latest"] == 1)
        assert [each.model.name for each in node.scheduler.loaded] == ["a:latest"]
        node.faults.clear()
        assert (await streaming).status_code == (await other).status_code == 200
        assert [each.model.name for each in node.scheduler.loaded] == ["b:latest"]


async def test_too_many_waiting_for_a_load_are_told_so() -> None:
    async with FakeOllama(models=["a", "b"], max_loaded=1, max_queue=1) as node, client_of(node) as http:
        node.faults.stall_after_lines = 1
        busy = ask(http, "a", stream=True)
        await node.until(lambda: node.scheduler.running["a:latest"] == 1)
        waiting = [ask(http, "b") for _ in range(2)]
        await node.until(lambda: node.scheduler.waiting["b:latest"] == 2)
        refused = await ask(http, "b")
        queued = ask(http, "a")
        await node.until(lambda: node.scheduler.waiting["a:latest"] == 1)
        node.faults.clear()
        assert {task.status_code for task in await asyncio.gather(busy, queued, *waiting)} == {200}
    assert refused.status_code == 503
    assert refused.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


async def test_a_zero_keep_alive_unloads_after_the_answer() -> None:
    async with FakeOllama(models=["a"]) as node, client_of(node) as http:
        await ask(http, "a", keep_alive=0)
        assert node.scheduler.loaded == []


async def test_two_names_for_the_same_weights_share_a_runner() -> None:
    twins = [FakeModel(name="a:latest", digest="d" * 64), FakeModel(name="b:latest", digest="d" * 64)]
    async with FakeOllama(models=twins) as node, client_of(node) as http:
        await ask(http, "a")
        await ask(http, "b")
        assert [each.model.name for each in node.scheduler.loaded] == ["a:latest"]


@pytest.mark.parametrize("embedder", ["all-minilm", "nomic-embed-text"])
async def test_embedding_models_have_one_slot_whatever_is_set(embedder: str) -> None:
    async with FakeOllama(models=[embedder], num_parallel=4) as node, client_of(node) as http:
        asked = [http.post("/api/embed", json={"model": embedder, "input": ["a"] * 3}) for _ in range(4)]
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 4
        assert node.scheduler.peak[f"{embedder}:latest"] == 1


async def test_a_heartbeat_tells_what_is_on_disk_and_in_memory() -> None:
    async with FakeOllama(models=["a", "all-minilm"], num_parallel=3, max_loaded=2) as node, client_of(node) as http:
        await ask(http, "a")
        body = heartbeat_of(node, "ash", memory_total_gb=32, draining=True)
    ollama = body["ollama"]
    assert (body["node_id"], body["ollama_host"], body["draining"]) == ("ash", node.url, True)
    assert body["memory"]["available_gb"] == 24
    assert (ollama["num_parallel"], ollama["max_loaded_models"], ollama["version"]) == (3, 2, "0.33.0")
    assert ollama["models_available"] == ["a:latest", "all-minilm:latest"]
    assert [loaded["name"] for loaded in ollama["models_loaded"]] == ["a:latest"]
    assert ollama["models_available_meta"]["all-minilm:latest"]["capabilities"] == ["embedding"]
