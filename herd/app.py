"""The composition root: the one place that knows every part, puts them together, and takes them apart in order."""

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from litestar import Litestar, MediaType, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.types import ASGIApp, Message, Scope

from events.clock import Clock, SystemClock
from events.recorded import Recorded
from events.sqlite import SQLiteStore
from events.store import ForeignDatabase, StoreError, StoreInUse
from events.types import NodeLeft, PolicyPromoted, RouterRecovered, RouterStarted, RouterStopped
from herd import __version__, logs
from herd.api import HANDLERS
from herd.api.inference import front_door
from herd.api.ingest import silent
from herd.api.state import AnyRequest, Shared
from herd.core import Core
from herd.dispatch.dispatcher import Dispatcher
from herd.dispatch.upstream import Upstream
from herd.errors import HerdError, StartupError
from herd.journal import Journal
from herd.node.discovery import announced
from herd.routing import POLICIES
from herd.routing.context import ClassicParameters
from herd.routing.policy import Policy
from herd.settings import Loaded, RouterSettings
from projections import runner
from projections.tables import TraceTable

logger = logging.getLogger("herd")

#: How long the store may take to write what is queued when the router stops, seconds.
CLOSE_WAIT_S = 10.0

#: Ollama's routes that this release does not have. Its command cannot read the plain text of an unknown path.
NOT_SERVED = frozenset(
    f"/api/{name}" for name in ("show", "pull", "push", "create", "copy", "delete", "me", "signout", "status")
)

_OTHER_PLACE = "Check that it can be written and has room, or choose another with --data-dir or FLEET_DATA_DIR."


@dataclass(frozen=True, kw_only=True)
class Running:
    """A router that serves."""

    core: Core
    port: int
    stopping: asyncio.Event
    """Set when the router shall stop in good order."""
    hurry: Callable[[], None]
    """Stops waiting for requests that still run."""

    def stop(self) -> None:
        """Stop in good order; called a second time, without waiting for what runs."""
        if self.stopping.is_set():
            self.hurry()
        self.stopping.set()

    @property
    def url(self) -> str:
        """Address on this machine."""
        return f"http://127.0.0.1:{self.port}"


def serve(loaded: Loaded[RouterSettings]) -> int:
    """Run the router until SIGTERM or SIGINT, and return the exit code. Raises `StartupError` if it cannot start."""
    settings = loaded.values
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"cannot use the data directory {settings.home}: {error.strerror}", hint=_OTHER_PLACE
        ) from error
    logs.configure(settings.home, file_level=settings.log_level, console_level=settings.console_log_level)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as loop:
            loop.run(_serve(loaded))
    finally:
        logs.shutdown()
    return 0


async def _serve(loaded: Loaded[RouterSettings]) -> None:
    async with running(loaded) as router:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError):  # Windows has no signal handlers on its loop; Ctrl-C still raises
                loop.add_signal_handler(number, router.stop)
        logger.info("herd %s listens on %s:%d", __version__, loaded.values.host, router.port)
        await router.stopping.wait()
        running_now = len(router.core.view.fleet.requests)
        logger.info("stopping; %d still to finish, a second signal does not wait for them", running_now)
    logger.info("stopped")


@asynccontextmanager
async def running(loaded: Loaded[RouterSettings], *, clock: Clock | None = None) -> AsyncGenerator[Running]:
    """Start a router, and stop it in good order on leaving: finish what runs, store what is known, let go of the log.

    Raises `StartupError` when the port is taken, the directory cannot be written, another router uses it, or the file
    there belongs to another program.
    """
    settings = loaded.values
    clock = clock or SystemClock()
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_listening(settings))
        port: int = listener.getsockname()[1]
        table = TraceTable(settings.database)
        store = _open_store(settings, clock, table)
        stack.push_async_callback(_close, store)
        core = _core(store, clock, _policy(settings))
        core.watch(Journal().write)
        core.record(
            RouterStarted(version=__version__, host=settings.host, port=port, pid=os.getpid()),
        )
        stack.callback(_say_goodbye, core)
        upstream = Upstream(connect_timeout_s=settings.connect_timeout, read_timeout_s=settings.read_timeout)
        stack.push_async_callback(upstream.close)
        dispatcher = Dispatcher(
            core,
            upstream,
            retries_max=settings.max_retries,
            waiting_max=settings.max_queue,
            wait_max_s=settings.queue_timeout,
        )
        app = make_app(Shared(core=core, settings=loaded, traces=table))
        if settings.mdns and not _is_loopback(settings.host):
            await stack.enter_async_context(announced(settings.mdns_service_type, settings.mdns_service_name, port))
        core.watch(partial(_forget_who_left, core, upstream))
        await stack.enter_async_context(_tasks(stopping, _watch_silence(core, settings), _keep_snapshots(core)))
        gc.freeze()  # what is loaded now stays; the collector need not look at it again
        hurry = await stack.enter_async_context(_http(front_door(dispatcher, app), listener, settings))
        yield Running(core=core, port=port, stopping=stopping, hurry=hurry)


def make_app(shared: Shared) -> Litestar:
    """Return the HTTP application."""

    async def name(message: Message, _: Scope) -> None:
        """Give an answer an id that a user can quote; inference answers carry the id of their request instead."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", shared.core.new_id().encode())]

    return Litestar(
        route_handlers=list(HANDLERS),
        state=State({"shared": shared, "core": shared.core}),
        exception_handlers={HerdError: _herd_error, HTTPException: _http_error, Exception: _bug},
        before_send=[name],
        openapi_config=OpenAPIConfig(title="Herd", version=__version__),
        logging_config=None,
    )


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - does not exist on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextmanager
def _listening(settings: RouterSettings) -> Generator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol spelled out, asyncio turns off Nagle's algorithm on accepted connections; else each answer waits
    # 40 ms for the client's delayed acknowledgement of its head.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(4096)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
                hint="Stop the program that uses the port, or choose another with --port or FLEET_PORT.",
            ) from error
        listener.setblocking(False)
        yield listener


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, so that nobody else should be told of it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open_store(settings: RouterSettings, clock: Clock, table: TraceTable) -> SQLiteStore:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        return SQLiteStore.open(
            settings.database,
            clock=clock,
            writer=f"{socket.gethostname()}:{settings.port}",
            durability=settings.durability,
            queue_max=settings.log_queue_max,
            projections=[table],
        )
    except ForeignDatabase as error:
        hint = (
            f"It is left as it is. Move it aside (mv {settings.database} {settings.database}.ollama-herd), "
            "or give Herd its own directory with --data-dir or FLEET_DATA_DIR."
        )
        raise StartupError(str(error), hint=hint) from error
    except StoreInUse as error:
        hint = "Stop the other router, or give this one its own directory with --data-dir or FLEET_DATA_DIR."
        raise StartupError(str(error), hint=hint) from error
    except (StoreError, OSError) as error:
        raise StartupError(f"cannot open the log {settings.database}: {error}", hint=_OTHER_PLACE) from error


def _policy(settings: RouterSettings) -> Policy:
    make = POLICIES.get(settings.policy)
    if make is None:
        raise StartupError(
            f"there is no routing policy {settings.policy!r}", hint=f"Use one of: {', '.join(POLICIES)}."
        )
    return make({name: getattr(settings, name) for name in ClassicParameters.__struct_fields__})


def _core(store: SQLiteStore, clock: Clock, policy: Policy) -> Core:
    """Return the core with its view as the log left it; what a crash left open is finished here."""
    view = runner.restore(store)
    core = Core(store, clock, policy, view, seed=int.from_bytes(os.urandom(8), "big"))
    abandoned = runner.abandoned(view)
    for ending in abandoned:
        core.record(ending)
    if abandoned:
        core.record(RouterRecovered(abandoned=len(abandoned)))
        logger.warning(
            "%d requests were open when the router last ended; they are recorded as abandoned", len(abandoned)
        )
    core.record(PolicyPromoted(policy=policy.name, policy_hash=policy.hash, parameters=policy.parameters, by="start"))
    return core


def _say_goodbye(core: Core) -> None:
    core.record(RouterStopped(why="asked to stop"))
    runner.save(core.store, core.view)


async def _close(store: SQLiteStore) -> None:
    try:
        async with asyncio.timeout(CLOSE_WAIT_S):
            await store.close()
    except (TimeoutError, StoreError) as error:
        logger.error("the log could not be stored completely: %s", error)  # noqa: TRY400 - no bug, no trace


@asynccontextmanager
async def _tasks(stopping: asyncio.Event, *work: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run coroutines beside the body and cancel them when it ends; one that fails stops the router, loudly."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("a part of the router failed, so it stops", exc_info=error)
            stopping.set()

    tasks = [asyncio.create_task(each) for each in work]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _forget_who_left(core: Core, upstream: Upstream, recorded: Recorded) -> None:
    if isinstance(recorded.event, NodeLeft):
        upstream.forget(core.view.fleet.nodes[recorded.event.node].url)


async def _watch_silence(core: Core, settings: RouterSettings) -> None:
    """A node that no longer reports looks idle, and would attract traffic that it cannot serve."""
    since = core.store.stamp()
    while True:
        for event in silent(
            core.view.fleet,
            now=core.store.stamp(),
            timeout_s=settings.heartbeat_timeout,
            offline_s=settings.heartbeat_offline,
            listening_since=since,
        ):
            core.record(event)
        await asyncio.sleep(settings.heartbeat_interval)


async def _keep_snapshots(core: Core) -> None:
    snapshotter = runner.Snapshotter(seq=core.view.seq, at=core.store.stamp())
    while True:
        await asyncio.sleep(1.0)
        if snapshotter.due(seq=core.view.seq, at=core.store.stamp()):
            runner.save(core.store, core.view)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the composition root decides when the router stops."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def _http(app: ASGIApp, listener: socket.socket, settings: RouterSettings) -> AsyncGenerator[Callable[[], None]]:
    """Serve HTTP while the body runs, and let what runs finish afterwards; yields how to cut that short."""
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=4096,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    def hurry() -> None:
        server.force_exit = True

    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has a flag, not an event
            await asyncio.sleep(0.01)
        yield hurry
    finally:
        server.should_exit = True
        await serving
        left = list(server.server_state.tasks)  # those that were not waited for; each still records its ending
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _herd_error(_: AnyRequest, error: HerdError) -> Response[Any]:
    content = {"error": error.message} | ({"hint": error.hint} if error.hint else {})
    return Response(content, status_code=error.status)


def _http_error(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """Answer as Ollama does: plain text for a path or a method that does not exist."""
    path = request.url.path
    if error.status_code == 404 and path in NOT_SERVED:
        return Response(
            {"error": f"herd {__version__} does not serve {path}; ask a node's own Ollama"}, status_code=501
        )
    if error.status_code == 404:
        return Response("404 page not found", status_code=404, media_type=MediaType.TEXT)
    if error.status_code == 405:
        return Response("405 method not allowed", status_code=405, media_type=MediaType.TEXT, headers=error.headers)
    return Response({"error": error.detail}, status_code=error.status_code)


def _bug(request: AnyRequest, error: Exception) -> Response[Any]:
    logger.error("a bug failed %s %s", request.method, request.url.path, exc_info=error)
    content = {"error": f"internal error ({type(error).__name__}); see the router's log"}
    return Response(content, status_code=500)
