"""A machine is of use only while the router knows what it has, so the agent keeps telling, whatever fails."""

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import httpx
import msgspec
import psutil
from msgspec.structs import replace

from events.clock import Clock
from herd import __version__
from herd.node.address import LOOPBACK, address_towards, host_of, is_loopback, is_this_machine, lan_address, port_of
from herd.node.collectors import COLLECTORS, Around, Collector
from herd.node.engines.engine import Engine
from herd.settings import NodeSettings
from herd.wire.heartbeat import Answer, Heartbeat

logger = logging.getLogger(__name__)

POST_TIMEOUT_S = 10.0

#: Heartbeats that fail in a row before the router is taken to have moved.
LOST_AFTER = 3

#: Waits after failures double up to this; a router that comes back should not be met by all agents at once.
BACKOFF_MAX_S = 30.0

#: How long one look for a router takes, seconds.
LOOK_S = 10.0

#: How often a draining agent asks whether its work is done, seconds, unless it reports more often anyway.
DRAIN_POLL_S = 0.5

Find = Callable[[float], Awaitable[str | None]]
"""Looks for a router for so many seconds."""


class Engines(Protocol):
    """Which engine to report on."""

    async def first(self) -> Engine:
        """Return the engine to begin with."""
        ...

    async def again(self, engine: Engine) -> Engine:
        """Return the engine to go on with; called while no request runs."""
        ...


class Agent:
    """Reports on one machine until it is told to stop."""

    def __init__(
        self,
        settings: NodeSettings,
        engines: Engines,
        client: httpx.AsyncClient,
        find: Find,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        collectors: tuple[Collector, ...] = COLLECTORS,
    ) -> None:
        """Take settings whose `node_id` is set. `jitter` returns 0 to 1."""
        self._settings = settings
        self._engines = engines
        self._client = client
        self._find = find
        self._clock = clock
        self._jitter = jitter
        self._collectors = collectors
        self._router = settings.router_url
        self._failures = 0
        self._failures_total = 0
        self._failed_in_a_row = 0
        self._work = 0
        self._deserted = False  # left while requests still ran
        self._said: dict[str, str] = {}
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()

    def stop(self) -> None:
        """Drain and stop; called a second time, stop at once."""
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()

    async def run(self) -> bool:
        """Report until stopped. Returns whether it left in good order, False where it was told twice.

        Raises `StartupError` where the engine insisted on cannot be had.
        """
        work = asyncio.create_task(self._run(), name="agent")
        hurry = asyncio.create_task(self._at_once.wait(), name="second signal")
        try:
            await asyncio.wait((work, hurry), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            orderly = work.done()
            work.cancel()
            await asyncio.wait((work, hurry))
        if orderly:
            work.result()
        return orderly and not self._deserted

    async def _run(self) -> None:
        if not self._router:
            logger.info("looking for a router; --router-url names one")
        engine = await self._unless_stopped(self._engines.first())
        if engine is None:
            return
        try:
            while not self._stopping.is_set():
                began_s = _now_s()
                try:
                    engine = await self._beat(engine)
                except Exception:  # the top of the task: a bug in one report must not end all that follow
                    self._failed_in_a_row += 1
                    logger.exception("a bug failed a report; the next one follows")
                await self._pause(began_s)
            await self._drain(engine)
        finally:
            await engine.close()

    async def _unless_stopped(self, starting: Awaitable[Engine]) -> Engine | None:
        """Return the engine, or None when told to stop before it was there: fetching one may take minutes."""
        start = asyncio.ensure_future(starting)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                return start.result()
            return None
        finally:
            stop.cancel()
            if not start.done():
                start.cancel()
                await asyncio.wait((start,))

    async def _beat(self, engine: Engine) -> Engine:
        """Report once. Returns the engine to go on with."""
        if self._lost:
            await self._discover()
        if not self._router or self._stopping.is_set():
            return engine
        if not self._work:
            engine = await self._engines.again(engine)
        await engine.be_reachable_at(await asyncio.to_thread(_where_seen_from, self._router))
        await self._send(await self._observe(engine))
        return engine

    @property
    def _lost(self) -> bool:
        """Whether to look for a router: there is none yet, or it seems to have moved."""
        return not self._settings.router_url and (not self._router or self._failed_in_a_row >= LOST_AFTER)

    async def _discover(self) -> None:
        """Look for a router until told to stop. One that is not found may still come back where it was."""
        looking = asyncio.ensure_future(self._find(LOOK_S))
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((looking, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not looking.done():
            looking.cancel()
            await asyncio.wait((looking,))
            return
        found = looking.result()
        if found is not None:
            self._router = await asyncio.to_thread(nearest, found)
        elif not self._router:
            text = "no router announces itself on this network; start one, or name one with --router-url"
            self._say("router", "none", logging.WARNING, text)

    async def _observe(self, engine: Engine) -> Heartbeat:
        report = await engine.report()
        if report.up:
            state = f"up {report.name} {report.version} {report.url}"
            models = "models unknown" if report.models is None else f"models on disk: {len(report.models)}"
            self._say(
                "engine", state, logging.INFO, f"{report.name} {report.version} answers at {report.url}, {models}"
            )
        else:
            why = engine.trouble or "it does not answer"
            self._say("engine", f"down {report.name}", logging.WARNING, f"{report.name} is down: {why}")
        beat = Heartbeat(
            node_id=self._settings.node_id,
            agent="herd",
            agent_version=__version__,
            engine=report,
            lan_ip=await asyncio.to_thread(lan_address),
            draining=self._stopping.is_set(),
        )
        return await asyncio.to_thread(self._measure, beat, Around(platform=sys.platform, models_dir=engine.models_dir))

    def _measure(self, beat: Heartbeat, around: Around) -> Heartbeat:
        for collect in self._collectors:
            name = collect.__module__.rpartition(".")[2]
            try:
                beat = collect(beat, around)
            except (OSError, ValueError, psutil.Error) as error:
                self._say(name, str(error), logging.WARNING, f"this machine does not tell its {name}: {error}")
        return beat

    async def _send(self, beat: Heartbeat) -> bool:
        """Post a heartbeat, and remember how it went. Returns whether the router took it."""
        beat = replace(
            beat,
            timestamp=self._clock.now() / 1e9,
            connection_failures=self._failures,
            connection_failures_total=self._failures_total,
        )
        try:
            response = await self._client.post(
                f"{self._router}/heartbeat",
                content=msgspec.json.encode(beat),
                headers={"Content-Type": "application/json"},
                timeout=POST_TIMEOUT_S,
            )
        except httpx.HTTPError as error:
            self._failures += 1
            self._failures_total += 1
            away = f"the router at {self._router} cannot be reached"
            self._lose(f"{away}: {str(error) or type(error).__name__}", state=away)
            return False
        if response.status_code == 404:
            self._lose(f"what answers at {self._router} is no router: it knows no /heartbeat; check --router-url")
            return False
        if not response.is_success:
            self._lose(f"the router at {self._router} refused a report: {response.status_code} {response.text[:300]}")
            return False
        try:
            answer = msgspec.json.decode(response.content, type=Answer)
        except msgspec.DecodeError as error:
            self._lose(f"what answers at {self._router} is no router: {error}")
            return False
        self._failures = self._failed_in_a_row = 0
        self._work = (answer.in_flight or 0) + (answer.waiting or 0)
        standing = answer.node_status or answer.status
        self._say("router", self._router, logging.INFO, f"reporting to {self._router} as {beat.node_id} ({standing})")
        return True

    def _lose(self, what: str, *, state: str = "") -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= LOST_AFTER and not self._stopping.is_set():
            self._work = 0  # a router that has long been gone sends nothing; one that missed a beat still may
        self._say("router", state or what, logging.WARNING, what)

    def _say(self, subject: str, state: str, level: int, text: str) -> None:
        """Log a change of state once; a log that repeats itself every five seconds is not read."""
        if self._said.get(subject) != state:
            self._said[subject] = state
            logger.log(level, "%s", text, extra={"node_id": self._settings.node_id})

    async def _pause(self, began_s: float) -> None:
        """Wait for the next heartbeat's turn, longer after failures, not at all when told to stop."""
        interval_s = self._settings.heartbeat_interval
        if self._failed_in_a_row:
            doublings = min(max(self._failed_in_a_row - LOST_AFTER, 0), 10)
            longest_s = max(BACKOFF_MAX_S, interval_s)
            interval_s = min(interval_s * 2**doublings, longest_s) * (0.5 + self._jitter() / 2)
        await _within(self._stopping, interval_s - (_now_s() - began_s))

    async def _drain(self, engine: Engine) -> None:
        """Tell the router to send no more, wait for what runs here, and say goodbye."""
        if not self._router:
            return
        until_s = _now_s() + self._settings.drain_timeout
        beat = await self._observe(engine)
        await self._send(beat)
        while self._work and _now_s() < until_s:
            text = f"stopping when {_requests(self._work)} {'is' if self._work == 1 else 'are'} finished"
            self._say("drain", str(self._work), logging.INFO, text)
            await asyncio.sleep(min(DRAIN_POLL_S, self._settings.heartbeat_interval, until_s - _now_s()))
            await self._send(beat)  # a failure is no answer: what was known last still counts
        if self._work:
            self._deserted = True
            timeout_s = self._settings.drain_timeout
            logger.warning("left after %.0f s with %s unfinished", timeout_s, _requests(self._work))
        await self._send(replace(beat, leaving=True))


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _within(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(max(timeout_s, 0.0)):
            await event.wait()
    except TimeoutError:
        return


def nearest(url: str) -> str:
    """Return the address by which to reach a router that announced itself: by loopback where it is here.

    It then knows that we are here too, and reaches an engine that listens on loopback only.
    """
    host = host_of(url)
    if is_loopback(host) or not is_this_machine(host):
        return url
    try:
        with socket.create_connection((LOOPBACK, port_of(url)), timeout=1.0):
            return f"http://{LOOPBACK}:{port_of(url)}"
    except OSError:
        return url


def _where_seen_from(router: str) -> str:
    """Return our address as that router sees it: loopback where it is here too."""
    host = host_of(router)
    return LOOPBACK if is_this_machine(host) else address_towards(host)
