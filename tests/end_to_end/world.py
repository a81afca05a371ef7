"""A real router on a real port with a real SQLite log, and fake nodes that it was told about as an agent would."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from events.recorded import Recorded
from events.sqlite import open_readonly
from events.types import Event
from herd.app import Running, running
from herd.settings import RouterSettings, load
from tests.fakes.heartbeat import heartbeat_of
from tests.fakes.ollama import FakeOllama

E = TypeVar("E", bound=Event)


class Fleet:
    """A running router, a client of it, and its nodes by name."""

    def __init__(self, router: Running, client: httpx.AsyncClient, home: Path) -> None:
        self.router = router
        self.client = client
        self.home = home
        self.nodes: dict[str, FakeOllama] = {}

    @property
    def url(self) -> str:
        """The router's address."""
        return self.router.url

    async def report(self, **fields: Any) -> None:
        """Let every node send a heartbeat now."""
        for name, node in self.nodes.items():
            answer = await self.client.post("/heartbeat", json=heartbeat_of(node, name, **fields))
            assert answer.status_code == 200, answer.text

    async def chat(self, model: str = "llama3:8b", *, path: str = "/api/chat", **body: Any) -> httpx.Response:
        """Ask for a chat that is not streamed, unless `stream` says otherwise."""
        asked = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": False, **body}
        return await self.client.post(path, json=asked)

    async def events(self, kind: type[E]) -> list[E]:
        """Return all events of one type that are in the database, after what is queued has got there."""
        return [recorded.event for recorded in await self.log() if isinstance(recorded.event, kind)]

    async def log(self) -> list[Recorded]:
        """Return the whole log as the database has it."""
        await self.router.core.store.flushed(self.router.core.view.seq)
        reader = open_readonly(self.home / "latency.db")
        try:
            return list(reader.read())
        finally:
            reader.close()

    async def status(self) -> dict[str, Any]:
        """Return `/fleet/status`."""
        return (await self.client.get("/fleet/status")).json()

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
        """Return as soon as the condition holds; it is looked at after each event."""
        changed = asyncio.Event()

        def ring(_: Recorded) -> None:
            changed.set()

        self.router.core.watch(ring)
        async with asyncio.timeout(timeout_s):
            while not condition():
                changed.clear()
                await changed.wait()

    @property
    def open_requests(self) -> int:
        """Requests without an ending."""
        return len(self.router.core.view.fleet.requests)

    @property
    def in_flight(self) -> int:
        """Requests that occupy a slot on any node."""
        return sum(node.in_flight for node in self.router.core.view.fleet.nodes.values())


def settings(home: Path, **flags: Any) -> Any:
    """Return router settings for a test, whatever the environment says."""
    quiet = {"host": "127.0.0.1", "port": 0, "data_dir": str(home), "mdns": False, "durability": "normal"}
    return load(RouterSettings, "FLEET_", flags={**quiet, **flags}, environment={})


@asynccontextmanager
async def fleet(home: Path, nodes: Sequence[FakeOllama] = (), **flags: Any) -> AsyncGenerator[Fleet]:
    """Run a router with these nodes, named `node-0`, `node-1`, … in order, each of which has reported once."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(running(settings(home, **flags)))
        # Certificates that nobody needs here take 40 ms to load.
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=router.url, timeout=20.0, verify=False, trust_env=False)
        )
        found = Fleet(router, client, home)
        for number, node in enumerate(nodes):
            found.nodes[f"node-{number}"] = await stack.enter_async_context(node)
        await found.report()
        yield found
