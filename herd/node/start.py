"""The one place that knows every part of the agent, puts them together, and takes them apart in order."""

import asyncio
import logging
import platform
import re
import secrets
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import filelock
import httpx
from msgspec.structs import replace

from events.clock import SystemClock
from herd import __version__, logs
from herd.errors import SettingsError, StartupError
from herd.node.address import base_url
from herd.node.agent import Agent
from herd.node.collectors.collector import first, said_by
from herd.node.discovery import find_router
from herd.node.engines.choice import Choice
from herd.node.engines.embedded import Embedded
from herd.node.engines.ollama import PORT as OLLAMA_PORT
from herd.node.engines.ollama import Ollama
from herd.settings import NodeSettings

logger = logging.getLogger(__name__)

ROUTER_PORT = 11435
NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def serve(settings: NodeSettings) -> bool:
    """Run the agent until SIGTERM or SIGINT. Returns whether it left in good order.

    Raises `SettingsError` and `StartupError` where it cannot start.
    """
    settings = completed(settings)
    logs.configure(
        settings.home, name="herd-node", file_level=settings.log_level, console_level=settings.console_log_level
    )
    try:
        with alone(settings):
            return asyncio.run(run(settings))
    finally:
        logs.shutdown()


async def run(settings: NodeSettings) -> bool:
    """Run the agent with completed settings until SIGTERM or SIGINT. Returns whether it left in good order."""
    chance = secrets.SystemRandom()  # only to keep agents from acting in step: nothing that anybody replays

    async def find(timeout_s: float) -> str | None:
        return await find_router(settings.mdns_service_type, timeout_s)

    async def embedded() -> Embedded:
        return await Embedded.fetched(settings.home, client, chance.random)

    # Router and engine are neighbours: a proxy for the internet is not on the way, and a redirect is not for us.
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False) as client:
        choice = Choice(settings.engine, Ollama(settings.ollama_host, client), embedded)
        agent = Agent(settings, choice, client, find, clock=SystemClock(), jitter=chance.random)
        logger.info("herd-node %s is %s", __version__, settings.node_id, extra={"node_id": settings.node_id})
        with stopped_by_signals(agent.stop):
            in_good_order = await agent.run()
    logger.info("stopped")
    return in_good_order


def completed(settings: NodeSettings) -> NodeSettings:
    """Return the settings with a name for the machine and addresses in full. Raises `SettingsError`."""
    name = settings.node_id or own_name()
    if not NODE_ID.fullmatch(name):
        hint = "Use up to 64 letters, digits, dots, dashes and underscores."
        raise SettingsError(f"{name!r} cannot be the name of a node (--node-id, FLEET_NODE_NODE_ID)", hint=hint)
    router = settings.router_url
    if router:
        router = base_url(router, "FLEET_NODE_ROUTER_URL", ROUTER_PORT, tls=True)  # a proxy before it may speak TLS
    ollama = base_url(settings.ollama_host, "FLEET_NODE_OLLAMA_HOST", OLLAMA_PORT)
    return replace(settings, node_id=name, router_url=router, ollama_host=ollama)


def own_name() -> str:
    """Return the machine's name up to the first dot."""
    name = socket.gethostname()
    if platform.system() == "Darwin":
        # The host name of a Mac follows the network that it is on; this one stays.
        name = first(said_by("scutil", "--get", "LocalHostName").splitlines()) or name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name.split(".")[0])[:64] or "node"


@contextmanager
def alone(settings: NodeSettings) -> Generator[None]:
    """Keep a second agent of the same name off this machine: the two would contradict each other forever.

    Raises `StartupError` where there is one, or where the data directory cannot be written.
    """
    lock = filelock.FileLock(settings.home / f"herd-node-{settings.node_id}.lock")
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StartupError(
            f"an agent named {settings.node_id} runs on this machine already",
            hint="Stop it, or give this one another name with --node-id.",
        ) from error
    except OSError as error:
        raise StartupError(
            f"cannot write to {settings.home}: {error.strerror}", hint="Choose another with FLEET_NODE_DATA_DIR."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Generator[None]:
    """Call `stop` on the event loop for each SIGTERM or SIGINT. Not by the loop: Windows' loops cannot."""
    loop = asyncio.get_running_loop()

    def asked(number: int, frame: object) -> None:
        del frame
        # Nothing else here: a signal may come while this thread holds the lock of a logger.
        loop.call_soon_threadsafe(told, number)

    def told(number: int) -> None:
        logger.info("%s: finishing what runs here; once more stops at once", signal.Signals(number).name)
        stop()

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, asked) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
