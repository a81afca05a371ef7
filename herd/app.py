"""The composition root: the one place that knows every part, puts them together, and takes them apart in order."""

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from events.clock import Clock, SystemClock
from events.recorded import Recorded
from events.sqlite import SQLiteStore
from events.store import ForeignDatabase, StoreDamaged, StoreError, StoreInUse
from events.types import NodeJoined, NodeLeft, PolicyPromoted, RouterRecovered, RouterStarted, RouterStopped
from herd import __version__, logs
from herd.api.door import Inlet
from herd.api.house import house
from herd.api.inference import inference
from herd.api.server import http, listening
from herd.api.state import Shared
from herd.core import Core
from herd.dispatch.dispatcher import Dispatcher
from herd.dispatch.upstream import Upstream
from herd.errors import StartupError
from herd.journal import LINES, Journal
from herd.reports.silence import forgotten, silent
from herd.routing import policy_named
from herd.routing.policy import Policy
from herd.settings import Loaded, RouterSettings
from herd.wire import ROUTES
from projections import runner
from projections.tables import TraceTable

try:
    import resource
except ImportError:  # Windows counts no descriptors
    resource = None

logger = logging.getLogger("herd")

#: Open files and connections that a router asks the system for.
DESCRIPTORS_WANTED = 65_536

#: How long the store may take to write what is queued when the router stops, seconds.
CLOSE_WAIT_S = 10.0

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
    failures: list[BaseException]
    """Why it stopped although nobody asked it to."""

    @property
    def failed(self) -> bool:
        """Whether it stopped although nobody asked it to."""
        return bool(self.failures)

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
    _allow_descriptors()
    logs.configure(settings.home, file_level=settings.log_level, console_level=settings.console_log_level)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as loop:
            return loop.run(_serve(loaded))
    finally:
        logs.shutdown()


def _allow_descriptors() -> None:
    """Each request has two connections, and the usual soft limit of 1,024 descriptors would end at 500 streams."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a sandbox may refuse; then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows has no signal handlers on its loop; Ctrl-C still raises
            loop.add_signal_handler(number, stop)


async def _serve(loaded: Loaded[RouterSettings]) -> int:
    stopping = asyncio.Event()
    _on_signals(stopping.set)  # a router may be told to stop before it has started
    async with running(loaded, stopping=stopping) as router:
        _on_signals(router.stop)
        logger.info("herd %s listens on %s:%d", __version__, loaded.values.host, router.port)
        await router.stopping.wait()
        left = len(router.core.view.fleet.requests)
        waits = f"; {left} {'request' if left == 1 else 'requests'} still to finish, Ctrl-C again does not wait"
        logger.info("stopping%s", waits if left else "")
    logger.info("stopped")
    return 1 if router.failed else 0


@asynccontextmanager
async def running(
    loaded: Loaded[RouterSettings], *, clock: Clock | None = None, stopping: asyncio.Event | None = None
) -> AsyncGenerator[Running]:
    """Start a router, and stop it in good order on leaving: finish what runs, store what is known, let go of the log.

    Raises `StartupError` when the port is taken, the directory cannot be written, another router uses it, or the file
    there belongs to another program.
    """
    settings = loaded.values
    clock = clock or SystemClock()
    stopping = stopping or asyncio.Event()
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listening(settings.host, settings.port))
        port: int = listener.getsockname()[1]
        table = TraceTable(settings.database)
        store = _open_store(settings, clock, table)
        failures: list[BaseException] = []
        stack.push_async_callback(_close, store, failures)
        core = _core(store, clock, _policy(settings))
        core.watch(Journal().write, *LINES)
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
        if settings.mdns and not _is_loopback(settings.host):
            from herd.node.discovery import announced  # noqa: PLC0415 - zeroconf is a fifth of what a start takes

            await stack.enter_async_context(announced(settings.mdns_service_type, settings.mdns_service_name, port))
        core.watch(_connections_of_leavers(core, upstream), NodeJoined, NodeLeft)
        await stack.enter_async_context(
            _tasks(stopping, failures, _watch_silence(core, settings), _keep_snapshots(core), _until_replaced(store))
        )
        # Events and views hold no cycles, so looking for them as often as is usual is work for nothing.
        gc.set_threshold(10_000, 20, 20)
        gc.freeze()  # what is loaded now stays; the collector need not look at it again
        app = house(Shared(core=core, settings=loaded, traces=table))
        inlet = Inlet(
            inference(dispatcher, name=f"herd-{os.urandom(8).hex()}"),
            ROUTES,
            core.new_id,
            body_max_bytes=settings.body_max_mib << 20,
            stall_max_s=settings.read_timeout,
        )
        hurry = await stack.enter_async_context(http(app, inlet, listener, grace_s=settings.shutdown_grace))
        yield Running(core=core, port=port, stopping=stopping, hurry=hurry, failures=failures)


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - does not exist on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


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
            f"Move it aside (mv {settings.database} {settings.database}.old), "
            "or give Herd its own directory with --data-dir or FLEET_DATA_DIR."
        )
        raise StartupError(str(error), hint=hint) from error
    except StoreInUse as error:
        hint = "Stop the other router, or give this one its own directory with --data-dir or FLEET_DATA_DIR."
        raise StartupError(str(error), hint=hint) from error
    except StoreDamaged as error:
        raise StartupError(str(error)) from error
    except (StoreError, OSError) as error:
        raise StartupError(f"cannot open the log {settings.database}: {error}", hint=_OTHER_PLACE) from error


def _policy(settings: RouterSettings) -> Policy:
    kind = policy_named(settings.policy)
    return kind({name: getattr(settings, name) for name in kind.parameters.__struct_fields__})


def _core(store: SQLiteStore, clock: Clock, policy: Policy) -> Core:
    """Return the core with its view as the log left it; what a crash left open is finished here."""
    try:
        view = runner.restore(store)
    except StoreError as error:
        raise StartupError(
            f"cannot read the log: {error}", hint="Run herd events verify to see how far it can be read."
        ) from error
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


async def _close(store: SQLiteStore, failures: list[BaseException]) -> None:
    try:
        async with asyncio.timeout(CLOSE_WAIT_S):
            await store.close()
    except (TimeoutError, StoreError) as error:
        logger.error("the log could not be stored completely: %s", error)  # noqa: TRY400 - no bug, no trace
        failures.append(error)


@asynccontextmanager
async def _tasks(
    stopping: asyncio.Event, failures: list[BaseException], *work: Coroutine[Any, Any, None]
) -> AsyncGenerator[None]:
    """Run coroutines beside the body and cancel them when it ends; one that fails stops the router, loudly."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, StoreInUse):
                logger.critical("%s; this one stops", error)
            else:
                logger.critical("a part of the router failed, so it stops", exc_info=error)
            failures.append(error)
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


def _connections_of_leavers(core: Core, upstream: Upstream) -> Callable[[Recorded], None]:
    """Return a watcher that closes the idle connections to addresses that nodes have left.

    It keeps the addresses itself: the view, which is folded first, no longer knows them.
    """
    urls = {node.name: node.url for node in core.view.fleet.nodes.values()}

    def watch(recorded: Recorded) -> None:
        event = recorded.event
        if isinstance(event, NodeJoined | NodeLeft):
            was = urls.pop(event.node, "")
            now = event.url if isinstance(event, NodeJoined) else ""
            if now:
                urls[event.node] = now
            if was and was != now:
                upstream.forget(was)

    return watch


async def _until_replaced(store: SQLiteStore) -> None:
    await store.replaced()
    raise StoreInUse("another router has taken over the log")


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
        for event in forgotten(core.view.fleet, now=core.store.stamp(), forget_s=settings.heartbeat_forget):
            core.record(event)
        await asyncio.sleep(settings.heartbeat_interval)


async def _keep_snapshots(core: Core) -> None:
    snapshotter, losses = runner.Snapshotter(seq=core.view.seq, at=core.store.stamp()), runner.Losses()
    while True:
        await asyncio.sleep(1.0)
        state = core.store.state
        if losses.over(lost=state.lost, head=state.head, seq=core.view.seq):
            runner.save_after_loss(core.store, core.view)
        if snapshotter.due(seq=core.view.seq, at=core.store.stamp()):
            runner.save(core.store, core.view)
