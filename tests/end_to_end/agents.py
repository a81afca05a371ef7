"""Node agents as their own processes, as users run them, and what the router says of them meanwhile."""

import os
import socket
import subprocess
import sys
import time
from asyncio import to_thread
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from tests.end_to_end.process import RouterProcess, router

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

#: Between two reports: short, so that what happens to a machine is known at once.
INTERVAL_S = 0.2

#: Nothing here takes a tenth of it, unless it does not happen at all.
WAIT_S = 30.0
POLL_S = 0.02


@dataclass
class AgentProcess:
    """A started `herd-node`."""

    process: subprocess.Popen[bytes]
    node_id: str
    home: Path

    @property
    def said(self) -> str:
        """What it has written to its console so far."""
        return (self.home / "console").read_text()

    def kill(self) -> None:
        """End it as a power cut would, as far as a process can."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.terminate()
        return self.process.wait(WAIT_S)


@contextmanager
def agent(
    home: Path, node_id: str, *, router_url: str = "", ollama: str = "", engine: str = "ollama", **settings: str
) -> Generator[AgentProcess]:
    """Start an agent at `home`/`node_id`; it need not have found its router. `settings` are FLEET_NODE_ variables."""
    own = home / node_id
    own.mkdir(parents=True, exist_ok=True)
    wanted = {"HEARTBEAT_INTERVAL": str(INTERVAL_S), "DRAIN_TIMEOUT": "20", "DATA_DIR": str(own)} | {
        name.upper(): value for name, value in settings.items()
    }
    flags = {"--node-id": node_id, "--router-url": router_url, "--ollama-host": ollama, "--engine": engine}
    arguments = [part for flag, value in flags.items() if value for part in (flag, value)]
    with (own / "console").open("ab") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "herd.cli.herd_node", *arguments],
            env=clean(own) | {f"FLEET_NODE_{name}": value for name, value in wanted.items()},
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
        )  # fmt: skip
    try:
        yield AgentProcess(process, node_id, own)
    finally:
        # Asked twice it waits for nothing, but still ends the engine that it brought.
        for end in (process.terminate, process.terminate, process.kill):
            if process.poll() is None:
                end()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)


def clean(home: Path) -> dict[str, str]:
    """Return this process's environment without anybody's settings, and with another home directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLEET_", "OLLAMA_"))}
    return kept | {"HOME": str(home), "FLEET_ENV_FILE": "/nonexistent/env"}


@asynccontextmanager
async def beside(starting: AbstractContextManager[T]) -> AsyncGenerator[T]:
    """Start and end a process without holding up the fakes that live on this event loop."""
    started = await to_thread(starting.__enter__)
    try:
        yield started
    finally:
        await to_thread(starting.__exit__, None, None, None)


def herd(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `herd` for the user with this home directory."""
    return subprocess.run(
        [sys.executable, "-m", "herd.cli.herd", *arguments],
        env=clean(home), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def watched_router(home: Path, port: int = 0, **settings: Any) -> Generator["Watched"]:
    """Start a router on the default data directory of this home; a free port is chosen unless one is given."""
    with router(home / ".fleet-manager", port or free_port(), **settings) as found, Watched(found, home) as watched:
        yield watched


class Watched:
    """A router and what it says of its fleet, asked again until it says what is waited for."""

    def __init__(self, router: RouterProcess, home: Path) -> None:
        self.router = router
        self.url = router.url
        self.home = home
        self.http = httpx.Client(base_url=router.url, timeout=WAIT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at a path."""
        return self.http.get(path, params=query).raise_for_status().json()

    def node(self, name: str) -> dict[str, Any]:
        """Return the status of a node, empty where there is none of that name."""
        return next((node for node in self.get("/fleet/status")["nodes"] if node["node_id"] == name), dict[str, Any]())

    def wait_for(self, name: str, status: str = "online", *, up: bool | None = None) -> dict[str, Any]:
        """Return a node as soon as it has a status, and its engine is up or down where that is asked."""
        return until(
            lambda: self.node(name),
            lambda node: bool(node) and node["status"] == status and up in (None, node["engine"]["up"]),
        )

    def log_lines(self) -> str:
        """Return what is in the router's JSONL log file."""
        return (self.home / ".fleet-manager" / "logs" / "herd.jsonl").read_text()


def until(look: Callable[[], T], holds: Callable[[T], bool] = bool, *, timeout_s: float = WAIT_S) -> T:
    """Look again and again until it holds, and return what was seen; other processes announce nothing."""
    over = time.monotonic() + timeout_s
    while not holds(seen := look()):
        assert time.monotonic() < over, f"it did not come to that: {seen}"
        time.sleep(POLL_S)
    return seen


def lines_with(text: str, word: str) -> list[str]:
    """Return the lines that contain a word."""
    return [line for line in text.splitlines() if word in line]


def asked(model: str, **body: Any) -> Mapping[str, Any]:
    """Return the body of a chat that is not streamed, unless `stream` says otherwise."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": False, **body}
