"""Real agents as processes of their own, at a real router: machines come, go, die and return, and the work goes on."""

import json
import time
from asyncio import to_thread
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from events.types import NodeLeft
from herd.node.discovery import announced, find_router
from tests.end_to_end import world
from tests.end_to_end.agents import (
    Watched,
    agent,
    asked,
    beside,
    free_port,
    herd,
    lines_with,
    until,
    watched_router,
)
from tests.fakes.heartbeat import heartbeat_of
from tests.fakes.ollama import FakeOllama

#: Silence after which a node is degraded, and then offline, seconds; ten reports fit into the first.
SILENCE_S: dict[str, Any] = {"heartbeat_interval": "0.1", "heartbeat_timeout": "2", "heartbeat_offline": "3.5"}


@pytest.fixture(scope="module", name="fleet")
def make_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A router for all tests that leave it running; each has nodes and a model of its own."""
    with watched_router(tmp_path_factory.mktemp("router"), **SILENCE_S) as fleet:
        yield fleet


@pytest.fixture(name="model")
def make_model() -> str:
    """A model that only this test's nodes have."""
    return f"m{uuid4().hex[:8]}:1b"


async def chat(fleet: Watched, model: str, **body: Any) -> httpx.Response:
    return await to_thread(fleet.http.post, "/api/chat", json=asked(model, **body))


async def served_by(fleet: Watched, model: str, **body: Any) -> Counter[str]:
    answers = [await chat(fleet, model, **body) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    return Counter(answer.headers["x-fleet-node"] for answer in answers)


async def report(fleet: Watched, body: dict[str, Any]) -> httpx.Response:
    return await to_thread(fleet.http.post, "/heartbeat", json=body)


def history(home: Path, node: str) -> list[dict[str, Any]]:
    """Return the node's events, by the command that a user has for it."""
    listed = herd(home, "events", "list", "--stream", f"node/{node}", "--json", "--limit", "10000")
    assert listed.returncode == 0, listed.stderr
    return [json.loads(line)["event"] for line in listed.stdout.splitlines()]


def standings(events: list[dict[str, Any]]) -> list[str]:
    return [event["status"] for event in events if event["type"] == "node.status_changed"]


# --- an agent stops -------------------------------------------------------------------------------------------------


async def test_an_agent_that_is_told_to_stop_waits_for_the_stream_that_runs(
    tmp_path: Path, fleet: Watched, model: str
) -> None:
    async with (
        FakeOllama(models=[model], tokens=10_000, delay_ms=20) as ollama,
        beside(agent(tmp_path, "leaving", router_url=fleet.url, ollama=ollama.url)) as leaving,
        httpx.AsyncClient(base_url=fleet.url, timeout=20) as client,
    ):
        await to_thread(fleet.wait_for, "leaving")
        body = asked(model, stream=True, options={"num_predict": 60})
        async with client.stream("POST", "/api/chat", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            leaving.process.terminate()
            await to_thread(fleet.wait_for, "leaving", "draining")
            refused = await chat(fleet, model)
            rest = [json.loads(line) async for line in lines]
        assert await to_thread(leaving.process.wait, 20) == 0
        await to_thread(fleet.wait_for, "leaving", "offline")
        events = await to_thread(history, fleet.home, "leaving")
        async with beside(agent(tmp_path, "leaving", router_url=fleet.url, ollama=ollama.url)):
            await to_thread(fleet.wait_for, "leaving")
            ollama.delay_ms = 0
            assert await served_by(fleet, model, options={"num_predict": 2}) == {"leaving": 8}
    assert rest[-1]["done"] is True
    assert len(rest) >= 60
    assert refused.status_code == 503
    assert "takes no new requests" in refused.json()["error"]
    assert int(refused.headers["retry-after"]) > 0
    assert "stopping when 1 request" in leaving.said
    told = [event["type"] for event in events]
    assert told.count("node.drain_requested") == 1
    assert told[-1] == "node.status_changed"
    assert (events[-1]["status"], events[-1]["why"]) == ("offline", "its agent stopped")
    assert standings(events) == ["online", "offline"]


async def test_a_node_whose_agent_is_killed_is_degraded_and_then_offline_until_it_is_back(
    tmp_path: Path, fleet: Watched, model: str
) -> None:
    async with FakeOllama(models=[model]) as ollama:
        given: dict[str, Any] = {"router_url": fleet.url, "ollama": ollama.url}
        async with beside(agent(tmp_path, "killed", **given)) as killed:
            await to_thread(fleet.wait_for, "killed")
            await to_thread(killed.kill)
        await to_thread(fleet.wait_for, "killed", "offline")
        assert (await chat(fleet, model)).status_code == 503
        async with beside(agent(tmp_path, "killed", **given)):
            await to_thread(fleet.wait_for, "killed")
            assert await served_by(fleet, model) == {"killed": 8}
    events = await to_thread(history, fleet.home, "killed")
    assert standings(events)[:4] == ["online", "degraded", "offline", "online"]
    silent = [event for event in events if event.get("why") == "silent"]
    assert [event["silent_ms"] // 500 for event in silent[:2]] == [pytest.approx(4, abs=1), pytest.approx(7, abs=1)]


async def test_a_node_that_is_silent_for_very_long_is_forgotten_and_comes_back_by_itself(tmp_path: Path) -> None:
    soon: dict[str, Any] = {"heartbeat_interval": 0.02, "heartbeat_timeout": 0.3, "heartbeat_offline": 0.6}
    async with world.fleet(tmp_path, [FakeOllama(models=["m:1b"])], **soon, heartbeat_forget=0.7) as found:
        await found.until(lambda: not found.router.core.view.fleet.nodes)
        assert (await found.chat("m:1b")).status_code == 404
        assert (await found.client.get("/api/tags")).json() == {"models": []}
        await found.report()
        assert (await found.chat("m:1b")).status_code == 200
        [why] = {left.why for left in await found.events(NodeLeft)}
    assert why == "silent for 0.7 s"


async def test_an_agent_without_a_router_stops_at_once_when_told(tmp_path: Path) -> None:
    async with beside(agent(tmp_path, "alone", mdns_service_type=own_service_type())) as alone:
        await to_thread(until, lambda: "looking for a router" in alone.said)
        assert await to_thread(alone.stop) == 0


# --- its engine stops -----------------------------------------------------------------------------------------------


async def test_an_engine_that_stops_gets_no_more_requests_until_it_is_back(
    tmp_path: Path, fleet: Watched, model: str
) -> None:
    async with FakeOllama(models=[model]) as first, FakeOllama(models=[model]) as second:
        first.die()  # it starts after its agent
        async with (
            beside(agent(tmp_path, "first", router_url=fleet.url, ollama=first.url)) as told,
            beside(agent(tmp_path, "second", router_url=fleet.url, ollama=second.url)),
        ):
            await to_thread(fleet.wait_for, "first", up=False)
            await to_thread(fleet.wait_for, "second")
            assert await served_by(fleet, model) == {"second": 8}

            first.faults.refuse = False
            await to_thread(fleet.wait_for, "first", up=True)
            second.die()
            assert (await served_by(fleet, model))["first"] == 8  # the first of them by asking again
            await to_thread(fleet.wait_for, "second", up=False)
            assert await served_by(fleet, model) == {"first": 8}

            first.die()
            await to_thread(fleet.wait_for, "first", up=False)
            refused = await chat(fleet, model)
            first.faults.refuse = False
            await to_thread(fleet.wait_for, "first", up=True)
            assert await served_by(fleet, model) == {"first": 8}
    assert refused.status_code == 503
    assert "first" in refused.json()["error"]
    assert len(lines_with(told.said, "Ollama is down")) == 2
    assert len(lines_with(told.said, "answers at")) == 2


# --- the router stops -----------------------------------------------------------------------------------------------


def reports_again(fleet: Watched, name: str, since: float) -> dict[str, Any]:
    return until(
        lambda: fleet.node(name),
        lambda node: (node.get("last_heartbeat") or 0) > since and node["status"] == "online",
    )


async def test_an_agent_waits_for_its_router_and_outlives_it(tmp_path: Path, model: str) -> None:
    port = free_port()
    async with (
        FakeOllama(models=[model]) as ollama,
        beside(agent(tmp_path, "patient", router_url=f"127.0.0.1:{port}", ollama=ollama.url)) as patient,
    ):
        await to_thread(until, lambda: "cannot be reached" in patient.said)
        async with beside(watched_router(tmp_path, port)) as fleet:
            await to_thread(fleet.wait_for, "patient")
            assert await served_by(fleet, model) == {"patient": 8}
            await to_thread(fleet.router.kill)
        killed_at = time.time()
        await to_thread(until, lambda: len(lines_with(patient.said, "cannot be reached")) >= 2)
        async with beside(watched_router(tmp_path, port)) as fleet:
            node = await to_thread(reports_again, fleet, "patient", killed_at)
            assert await served_by(fleet, model) == {"patient": 8}
            assert await to_thread(patient.stop) == 0
            assert await to_thread(fleet.router.stop) == 0
    assert node["ollama"]["models_available"] == [model]
    # Once before the first router, and then once for each way in which the second loss shows: reset, refused.
    assert len(lines_with(patient.said, "cannot be reached")) in (2, 3)
    assert len(lines_with(patient.said, "reporting to")) == 2
    # What it missed is told with the first report that arrives.
    reported = [event for event in history(tmp_path, "patient") if event["type"] == "node.reported"]
    assert sum(event.get("connection_failures", 0) > 0 for event in reported) >= 2
    assert herd(tmp_path, "replay", "verify").returncode == 0
    assert herd(tmp_path, "events", "verify").returncode == 0


def own_service_type() -> str:
    """Return a service type that no router beside this test announces."""
    return f"_h{uuid4().hex[:10]}._tcp.local."


async def blame_the_network() -> None:
    """Skip if the network carries no announcement from one socket of this machine to another."""
    kind = own_service_type()
    async with announced(kind, "Fleet Manager Router", 1):
        if await find_router(kind, 10) is None:
            pytest.skip("NO MULTICAST: this machine hears no mDNS from itself, so agents cannot find routers here")


async def test_an_agent_finds_its_router_and_finds_it_again_when_it_moves(tmp_path: Path, model: str) -> None:
    kind = own_service_type()
    async with (
        FakeOllama(models=[model]) as ollama,
        beside(agent(tmp_path, "seeker", ollama=ollama.url, mdns_service_type=kind)) as seeker,
    ):
        addresses: list[str] = []
        for _ in range(2):
            started_at = time.time()
            # On all interfaces, as it is by default: on loopback alone no other machine could reach what is announced.
            announced_router = watched_router(tmp_path, host="0.0.0.0", mdns="true", mdns_service_type=kind)
            async with beside(announced_router) as fleet:
                try:
                    await to_thread(reports_again, fleet, "seeker", started_at)
                except AssertionError:
                    await blame_the_network()
                    raise
                assert await served_by(fleet, model) == {"seeker": 8}
                addresses.append(fleet.url)
                assert await to_thread(fleet.router.stop) == 0
    assert addresses[0] != addresses[1]
    assert [line.split("reporting to ")[1].split()[0] for line in lines_with(seeker.said, "reporting to")] == addresses


# --- what agents say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_machine_whose_clock_is_an_hour_off_works_and_is_told(fleet: Watched, model: str, hours: int) -> None:
    async with FakeOllama(models=[model]) as ollama:
        name = f"skewed{hours}"
        beat = heartbeat_of(ollama, name, timestamp=time.time() + hours * 3600)
        assert (await report(fleet, beat)).status_code == 200
        assert await served_by(fleet, model) == {name: 8}
    node = await to_thread(fleet.node, name)
    assert node["clock_skew_s"] == pytest.approx(hours * 3600, abs=3)
    assert node["last_heartbeat_age_s"] < 30


async def test_agents_of_the_peer_report_beside_ours(tmp_path: Path, fleet: Watched, model: str) -> None:
    async with (
        FakeOllama(models=[model]) as ours,
        FakeOllama(models=[model]) as theirs,
        beside(agent(tmp_path, "ours", router_url=fleet.url, ollama=ours.url)),
    ):
        await to_thread(fleet.wait_for, "ours")
        beat = heartbeat_of(theirs, "theirs", gpu_cluster={"made": "up"}, ollama_flags=[1])
        beat["ollama"]["of_a_later_release"] = True
        ours.die()
        await to_thread(fleet.wait_for, "ours", up=False)
        assert (await report(fleet, beat)).json()["status"] == "ok"
        assert await served_by(fleet, model) == {"theirs": 8}

        ours.faults.refuse = False
        await to_thread(fleet.wait_for, "ours", up=True)
        theirs.die()
        assert (await report(fleet, beat)).json()["node_status"] == "online"
        assert await served_by(fleet, model) == {"ours": 8}
    assert (await to_thread(fleet.node, "theirs"))["agent_version"] == "0.11.4"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"node_id": "a:b"}, "node_id"),
        ({"node_id": 7}, "node_id"),
        ({"cpu": {"cores_physical": "four", "utilization_pct": 1.0}}, "cpu.cores_physical"),
        ({"memory": {"total_gb": -1}}, "memory.total_gb"),
        ({"ollama": None}, "ollama"),
        ({"ollama_host": "ftp://127.0.0.1"}, "ollama_host"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_malformed_heartbeat_is_refused_by_the_name_of_the_field(
    fleet: Watched, change: dict[str, Any], field: str
) -> None:
    beat = heartbeat_of(FakeOllama(), "malformed")
    answer = await report(fleet, beat | {"ollama_host": "http://127.0.0.1:1"} | change)
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert field in answer.json()["error"]
    assert await to_thread(fleet.node, "malformed") == {}


async def test_a_heartbeat_that_is_no_json_is_refused(fleet: Watched) -> None:
    answer = await to_thread(lambda: fleet.http.post("/heartbeat", content=b"{"))
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]


# --- what the log files say -----------------------------------------------------------------------------------------


def log_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_log_lines_name_the_request_the_node_and_the_model_that_they_are_about(
    tmp_path: Path, fleet: Watched, model: str
) -> None:
    async with (
        FakeOllama(models=[model]) as liar,
        beside(agent(tmp_path, "liar", router_url=fleet.url, ollama=liar.url)) as teller,
    ):
        await to_thread(fleet.wait_for, "liar")
        liar.faults.missing = (model,)
        answer = await chat(fleet, model)
        assert answer.status_code == 404
        told = await to_thread(until, lambda: lines_with(fleet.log_lines(), answer.headers["x-request-id"]))
        assert await to_thread(teller.stop) == 0
    about = {"request_id": answer.headers["x-request-id"], "node_id": "liar", "model": model}
    assert [line for line in log_lines("\n".join(told)) if about.items() <= line.items()]
    own = log_lines((teller.home / "logs" / "herd-node.jsonl").read_text())
    assert {line.get("node_id") for line in own if line["logger"] == "herd.node.agent"} == {"liar"}
