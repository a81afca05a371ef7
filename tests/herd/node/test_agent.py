"""The agent keeps telling, says once what changed, and does not leave before its work is done."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from events.clock import ManualClock
from herd.errors import StartupError
from herd.node.agent import Agent, nearest
from herd.node.collectors import Around
from herd.settings import NodeSettings
from herd.wire import heartbeat as wire
from herd.wire.heartbeat import Heartbeat, parse
from tests.herd.node.web import eventually, served


class FakeRouter:
    """Takes heartbeats; what it answers can be changed at run time."""

    def __init__(self) -> None:
        self.beats: list[Heartbeat] = []
        self.status = 200
        self.answer: Any = {"status": "ok", "node_status": "online", "in_flight": 0, "waiting": 0}
        self.heard = asyncio.Event()

    async def handle(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/heartbeat")
        self.beats.append(parse(body))
        self.heard.set()
        return self.status, self.answer

    async def next(self) -> Heartbeat:
        """Return the next heartbeat to arrive."""
        self.heard.clear()
        async with asyncio.timeout(20):
            await self.heard.wait()
        return self.beats[-1]

    async def until(self, holds: Callable[[Heartbeat], bool]) -> Heartbeat:
        while not holds(beat := await self.next()):
            pass
        return beat


class FakeEngine:
    """An engine with switches."""

    def __init__(self) -> None:
        self.models_dir = Path("/")
        self.trouble = ""
        self.up = True
        self.fails: Exception | None = None
        self.hosts: list[str] = []
        self.closed = asyncio.Event()

    async def report(self) -> wire.Engine:
        if self.fails is not None:
            raise self.fails
        return wire.Engine(dialect="openai", name="fake", url="http://127.0.0.1:1", up=self.up, models=(), loaded=())

    async def be_reachable_at(self, host: str) -> None:
        if [host] != self.hosts[-1:]:
            self.hosts.append(host)

    async def close(self) -> None:
        self.closed.set()


class FakeEngines:
    """Gives out one engine."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.asked_again = 0
        self.ready = asyncio.Event()
        self.ready.set()
        self.refuses: StartupError | None = None

    async def first(self) -> FakeEngine:
        await self.ready.wait()
        if self.refuses is not None:
            raise self.refuses
        return self.engine

    async def again(self, engine: object) -> FakeEngine:
        self.asked_again += 1
        return self.engine


def no_memory(heartbeat: Heartbeat, around: Around) -> Heartbeat:
    raise OSError("no such sensor")


def chip(heartbeat: Heartbeat, around: Around) -> Heartbeat:
    return replace(heartbeat, chip="a chip")


#: After so many failures in a row a router has moved.
LOST_AFTER = 3

SETTINGS = NodeSettings(node_id="ash", heartbeat_interval=0.01, drain_timeout=20.0)


class Stage:
    """An agent with everything around it."""

    def __init__(self, agent: Agent, engine: FakeEngine, engines: FakeEngines, finds: list[str | None]) -> None:
        self.agent = agent
        self.engine = engine
        self.engines = engines
        self.finds = finds
        self.run = asyncio.create_task(agent.run())

    async def ended(self) -> bool:
        async with asyncio.timeout(20):
            return await self.run


@asynccontextmanager
async def stage(
    url: str = "", *finds: str | None, engines: FakeEngines | None = None, **changes: Any
) -> AsyncGenerator[Stage]:
    """Run an agent that is told this address, or else finds these, one look after the other, the last one forever."""
    engines = engines or FakeEngines(FakeEngine())
    left = list(finds)

    async def find(timeout_s: float) -> str | None:
        await asyncio.sleep(0)
        return left.pop(0) if len(left) > 1 else left[0]

    async with httpx.AsyncClient(trust_env=False) as client:
        agent = Agent(
            replace(SETTINGS, router_url=url, **changes),
            engines,
            client,
            find,
            clock=ManualClock(),
            jitter=lambda: 0.0,
            collectors=(no_memory, chip),
        )
        staged = Stage(agent, engines.engine, engines, left)
        try:
            yield staged
        finally:
            staged.run.cancel()
            await asyncio.wait((staged.run,))


async def test_it_reports_again_and_again() -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage(url):
        await router.next()
        await router.next()
        beat = await router.next()
    assert (beat.node_id, beat.agent, beat.draining, beat.chip) == ("ash", "herd", False, "a chip")
    assert beat.engine is not None
    assert beat.engine.name == "fake"
    assert beat.timestamp == 1_767_225_600.0


async def test_a_reading_that_cannot_be_had_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage(url):
        await router.next()
        await router.next()
        await router.next()
    assert caplog.text.count("no such sensor") == 1


async def test_a_router_that_is_away_is_waited_for_and_told_what_it_missed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    router = FakeRouter()
    async with served(router.handle) as url:
        pass
    async with stage(url) as staged:
        await eventually(lambda: "cannot be reached" in caplog.text)
        async with served(router.handle, int(url.rpartition(":")[2])):
            back = await router.next()
            then = await router.next()
        assert back.connection_failures == back.connection_failures_total > 0
        assert then.connection_failures == 0
        assert then.connection_failures_total == back.connection_failures_total
        assert not staged.run.done()
    assert caplog.text.count("cannot be reached") == 1
    assert caplog.text.count("reporting to") == 1


async def test_a_server_that_is_no_router_is_told_as_that(caplog: pytest.LogCaptureFixture) -> None:
    router = FakeRouter()
    router.status = 404
    async with served(router.handle) as url, stage(url):
        await router.next()
        await eventually(lambda: f"what answers at {url} is no router" in caplog.text)


async def test_a_router_that_moves_is_found_again() -> None:
    old, new = FakeRouter(), FakeRouter()
    async with (
        served(new.handle) as new_url,
        served(old.handle) as old_url,
        stage("", None, old_url, new_url),
    ):
        await old.next()
        good, old.status = len(old.beats), 500
        beat = await new.next()
    assert beat.node_id == "ash"
    assert len(old.beats) - good in (LOST_AFTER, LOST_AFTER + 1)  # one may have been on its way


async def test_a_router_that_was_named_is_not_replaced_by_one_that_is_found() -> None:
    named, other = FakeRouter(), FakeRouter()
    named.status = 503
    async with served(named.handle) as url, served(other.handle) as other_url, stage(url, other_url):
        for _ in range(6):
            await named.next()
    assert other.beats == []


async def test_a_router_that_announces_itself_no_more_may_come_back_where_it_was() -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage("", url, None):
        await router.next()
        router.status = 500
        for _ in range(5):
            await router.next()
        router.status = 200
        await router.next()


async def test_a_refusal_is_said_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    router = FakeRouter()
    router.status, router.answer = 400, {"error": "node_id: taken", "field": "node_id"}
    async with served(router.handle) as url, stage(url):
        for _ in range(4):
            await router.next()
    assert caplog.text.count("node_id: taken") == 1


async def test_something_else_at_the_routers_address_is_no_router(caplog: pytest.LogCaptureFixture) -> None:
    router = FakeRouter()
    router.answer = b"<html>"
    async with served(router.handle) as url, stage(url):
        await router.next()
        await router.next()
    assert "is no router" in caplog.text


async def test_an_engine_that_is_down_is_reported_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    router = FakeRouter()
    async with served(router.handle) as url, stage(url) as staged:
        staged.engine.up, staged.engine.trouble = False, "somebody stopped it"
        down = await router.until(lambda beat: beat.engine is not None and not beat.engine.up)
        await router.next()
        staged.engine.up = True
        await router.until(lambda beat: beat.engine is not None and beat.engine.up)
    assert down.engine is not None
    assert caplog.text.count("fake is down: somebody stopped it") == 1


async def test_a_bug_in_one_report_does_not_end_the_others(caplog: pytest.LogCaptureFixture) -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage(url) as staged:
        await router.next()
        staged.engine.fails = RuntimeError("a bug")
        await eventually(lambda: "RuntimeError: a bug" in caplog.text)
        staged.engine.fails = None
        await router.next()


async def test_an_engine_is_changed_only_while_nothing_runs() -> None:
    router = FakeRouter()
    router.answer = router.answer | {"in_flight": 2}
    async with served(router.handle) as url, stage(url) as staged:
        await router.next()
        await router.next()
        asked = staged.engines.asked_again
        await router.next()
        await router.next()
        assert staged.engines.asked_again == asked
        router.answer = router.answer | {"in_flight": 0}
        await eventually(lambda: staged.engines.asked_again > asked)


async def test_a_router_on_this_machine_is_served_on_loopback() -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage(url) as staged:
        await router.next()
        assert staged.engine.hosts == ["127.0.0.1"]


# --- leaving --------------------------------------------------------------------------------------------------------


async def test_it_leaves_when_its_work_is_done() -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage(url) as staged:
        await router.next()
        router.answer = {"status": "draining", "node_status": "draining", "in_flight": 1, "waiting": 1}
        staged.agent.stop()
        await router.until(lambda beat: beat.draining)
        await router.next()
        assert not staged.engine.closed.is_set()
        assert not any(beat.leaving for beat in router.beats)
        router.answer = router.answer | {"in_flight": 0}
        await router.next()
        router.answer = router.answer | {"waiting": 0}
        goodbye = await router.until(lambda beat: beat.leaving)
        assert await staged.ended()
        assert goodbye.draining
        assert staged.engine.closed.is_set()
    assert router.beats[-1] is goodbye


async def test_it_does_not_wait_for_its_work_for_ever() -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage(url, drain_timeout=0.02) as staged:
        await router.next()
        router.answer = router.answer | {"in_flight": 1}
        staged.agent.stop()
        assert not await staged.ended()  # it says by its exit code that it left work behind
    assert router.beats[-1].leaving


async def test_a_router_that_misses_a_moment_does_not_end_the_drain() -> None:
    router = FakeRouter()
    router.answer = router.answer | {"in_flight": 1}
    async with served(router.handle) as url, stage(url) as staged:
        await router.next()
        await router.next()
        router.status = 503
        staged.agent.stop()
        await router.until(lambda beat: beat.draining)
        await router.next()
        assert not any(beat.leaving for beat in router.beats)
        router.status = 200
        await router.next()
        assert not any(beat.leaving for beat in router.beats)
        router.answer = router.answer | {"in_flight": 0}
        await router.until(lambda beat: beat.leaving)
        assert await staged.ended()


async def test_work_that_the_router_took_along_when_it_went_counts_as_left(caplog: pytest.LogCaptureFixture) -> None:
    router = FakeRouter()
    router.answer = router.answer | {"in_flight": 1}
    async with served(router.handle) as url, stage(url, drain_timeout=0.02) as staged:
        await router.next()
        await router.next()
        router.status = 503
        staged.agent.stop()
        assert not await staged.ended()
    assert "with 1 request unfinished" in caplog.text


async def test_work_of_a_router_that_has_long_been_gone_is_not_waited_for() -> None:
    router = FakeRouter()
    router.answer = router.answer | {"in_flight": 1}
    async with served(router.handle) as url, stage(url) as staged:
        await router.next()
        router.status = 503
        for _ in range(LOST_AFTER + 2):
            await router.next()
        staged.agent.stop()
        assert await staged.ended()


async def test_told_twice_it_stops_at_once() -> None:
    router = FakeRouter()
    async with served(router.handle) as url, stage(url) as staged:
        router.answer = router.answer | {"in_flight": 1}
        await router.next()
        staged.agent.stop()
        await router.until(lambda beat: beat.draining)
        staged.agent.stop()
        assert not await staged.ended()
        assert staged.engine.closed.is_set()
    assert not any(beat.leaving for beat in router.beats)


async def test_it_leaves_a_router_that_does_not_count_work_at_once() -> None:
    router = FakeRouter()
    router.answer = {"status": "ok", "node_status": "online"}
    async with served(router.handle) as url, stage(url) as staged:
        await router.next()
        staged.agent.stop()
        assert await staged.ended()
    assert router.beats[-1].leaving


async def test_it_leaves_although_the_router_is_gone() -> None:
    async with served(FakeRouter().handle) as url:
        pass
    async with stage(url) as staged:
        staged.agent.stop()
        assert await staged.ended()


async def test_it_leaves_although_no_router_was_ever_found() -> None:
    async with stage("", None) as staged:
        staged.agent.stop()
        assert await staged.ended()
        assert staged.engine.closed.is_set()


async def test_it_leaves_although_its_engine_is_still_being_fetched() -> None:
    engines = FakeEngines(FakeEngine())
    engines.ready.clear()
    async with stage("http://127.0.0.1:9", engines=engines) as staged:
        staged.agent.stop()
        assert await staged.ended()


async def test_an_engine_that_cannot_be_had_ends_the_agent_with_the_reason() -> None:
    engines = FakeEngines(FakeEngine())
    engines.refuses = StartupError("cannot fetch", hint="Check the network.")
    async with stage("http://127.0.0.1:9", engines=engines) as staged:
        with pytest.raises(StartupError, match="cannot fetch"):
            await staged.ended()


def test_a_router_elsewhere_is_reached_where_it_announces_itself() -> None:
    assert nearest("http://192.0.2.200:11435") == "http://192.0.2.200:11435"
    assert nearest("http://127.0.0.1:1") == "http://127.0.0.1:1"
