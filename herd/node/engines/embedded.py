"""A machine without Ollama can still serve: a small model in llama.cpp's server, started and minded by its agent."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

import herd
from herd.node.address import LOOPBACK, bracketed, free_port
from herd.node.engines import fetch
from herd.node.engines.engine import ANSWER_TIMEOUT_S
from herd.wire import heartbeat as wire

logger = logging.getLogger(__name__)

MODEL = "smollm2:135m"
PARALLEL = 2
CONTEXT_TOKENS = 4096

#: Keys and values of SmolLM2-135M: 30 layers, 3 heads of 64 numbers, two bytes each.
KV_BYTES_PER_TOKEN = 2 * 30 * 3 * 64 * 2

#: Wait before a restart: doubled with each failure in a row; a server that has stood this long begins a new row.
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
STEADY_S = 60.0

#: How long a report waits for a server that has just been started; a small model loads in a second or two.
READY_WAIT_S = 20.0
READY_POLL_S = 0.1

#: How long the server may take to notice that it should end.
STOP_WAIT_S = 5.0

LOG_MAX_BYTES = 10_000_000

Command = Callable[[str, int], Sequence[str]]
"""Returns the command line of a server that listens on a host and port, and ends when its standard input does."""


class Embedded:
    """llama.cpp's server as a child: started again when it dies, ended with the agent, however that ends."""

    def __init__(
        self,
        home: Path,
        client: httpx.AsyncClient,
        *,
        command: Command,
        environment: Mapping[str, str],
        jitter: Callable[[], float],
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        """Take what `fetched` puts together. `jitter` returns 0 to 1."""
        self.models_dir = home / "models"
        self.trouble = ""
        self.url = ""
        self._log = home / "logs" / "llama-server.log"
        self._client = client
        self._command = command
        self._environment = environment
        self._jitter = jitter
        self._backoff_first_s = backoff_first_s
        self._host = LOOPBACK
        self._moving = False
        self._failing = False
        self._process: asyncio.subprocess.Process | None = None
        self._minder: asyncio.Task[None] | None = None

    @classmethod
    async def fetched(cls, home: Path, client: httpx.AsyncClient, jitter: Callable[[], float]) -> "Embedded":
        """Fetch what is missing of server and model. Raises `StartupError` where they cannot be had."""
        library = await fetch.library(home)
        model = await fetch.weights(home)
        paths = [str(path) for path in (library, Path(herd.__file__).parents[1], os.environ.get("PYTHONPATH")) if path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

        def command(host: str, port: int) -> Sequence[str]:
            return server_command(model, host, port)

        return cls(home, client, command=command, environment=environment, jitter=jitter)

    async def start(self) -> None:
        """Start the server and mind it until `close`. Returns when it answers, or takes too long to."""
        self._minder = asyncio.create_task(self._mind(), name="llama.cpp server")
        await self._ready()

    async def report(self) -> wire.Engine:
        """Return the one model, and whether the server answers."""
        up = await self._healthy()
        size_bytes = fetch.SMOLLM2.size_bytes
        digest = fetch.SMOLLM2.sha256
        cache_bytes = PARALLEL * CONTEXT_TOKENS * KV_BYTES_PER_TOKEN
        model = wire.Model(
            name=MODEL,
            size_bytes=size_bytes,
            digest=digest,
            format="gguf",
            family="llama",
            families=("llama",),
            parameter_size="134.52M",
            quantization="Q4_1",
            context_length=CONTEXT_TOKENS,
            embedding_length=576,
            capabilities=("completion",),
        )
        loaded = wire.Loaded(
            name=MODEL,
            size_bytes=size_bytes + cache_bytes,
            context_length=CONTEXT_TOKENS,
            digest=digest,
            parameter_size="134.52M",
            quantization="Q4_1",
            family="llama",
        )
        return wire.Engine(
            dialect="openai",
            name="llama.cpp",
            url=self.url,
            up=up,
            version=fetch.engine_version(),
            parallel=PARALLEL,
            loaded_max=1,
            models=(model,),
            loaded=(loaded,) if up else (),
        )

    async def be_reachable_at(self, host: str) -> None:
        """Listen there and nowhere else: what need not be open to the network is not."""
        if host == self._host:
            return
        self._host = host
        self._moving = True
        if self._process is not None:
            await _end(self._process)
        await self._ready()

    async def close(self) -> None:
        """End the server, and wait until it is gone."""
        if self._minder is None:
            return
        self._minder.cancel()
        await asyncio.wait((self._minder,))

    async def _ready(self) -> None:
        for _ in range(round(READY_WAIT_S / READY_POLL_S)):
            if self._failing or (not self._moving and await self._healthy()):
                return
            await asyncio.sleep(READY_POLL_S)

    async def _healthy(self) -> bool:
        if self._process is None or self._process.returncode is not None:
            self.trouble = self.trouble or "it is starting"
            return False
        try:
            response = await self._client.get(f"{self.url}/health", timeout=ANSWER_TIMEOUT_S)
        except httpx.HTTPError as error:
            if not self._failing:  # else why it died says more
                self.trouble = f"it does not answer: {error or type(error).__name__}"
            return False
        self.trouble = "" if response.is_success else "it is loading its model"
        self._failing = self._failing and not response.is_success
        return response.is_success

    async def _mind(self) -> None:
        """Keep a server running. A failure is not an end: the machine may run out of memory now and have some later."""
        now = asyncio.get_running_loop().time
        failures = 0
        port = 0
        while True:
            began_s = now()
            try:
                if failures != 1 or self._moving:  # after two failures in a row the port may be to blame
                    self._moving = False
                    port = free_port(self._host)
                ending = f"with code {await self._serve(port)}"
            except OSError as error:  # its address is gone, no room for its log, no memory
                ending = f"before it began: {error}"
            if self._moving:
                failures = 0
                continue
            failures = 1 if now() - began_s >= STEADY_S else failures + 1
            wait_s = min(self._backoff_first_s * 2 ** (failures - 1), BACKOFF_MAX_S) * (0.5 + self._jitter() / 2)
            self._failing = True
            self.trouble = f"it ended {ending}, {failures} in a row; see {self._log}"
            logger.warning("the llama.cpp server ended %s and is started again in %.1f s", ending, wait_s)
            await asyncio.sleep(wait_s)

    async def _serve(self, port: int) -> int | None:
        host = self._host
        self.url = f"http://{bracketed(host)}:{port}"
        with _append(self._log) as out:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(host, port),
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(self._environment),
                # Ctrl-C reaches every process of a terminal; the server must live until the agent has drained.
                **_OWN_GROUP,
            )
        try:
            logger.info("the llama.cpp server (%s) starts at %s", MODEL, self.url)
            return await self._process.wait()
        finally:
            await _end(self._process)


_OWN_GROUP: dict[str, Any] = {"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}


def server_command(model: Path, host: str, port: int) -> tuple[str, ...]:
    """Return the command line of the server."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    # Whoever sits at the machine gets a core; and threads that wait for a busy one are slower than fewer.
    threads = max(1, cores - 1)
    module = (sys.executable, "-m", "herd.node.engines.llama_cpp", str(model), str(port))
    limits = ("--parallel", str(PARALLEL), "--context", str(CONTEXT_TOKENS), "--threads", str(threads))
    return (*module, "--host", host, "--alias", MODEL, *limits)


def _append(log: Path) -> Any:
    log.parent.mkdir(parents=True, exist_ok=True)
    full = log.exists() and log.stat().st_size > LOG_MAX_BYTES
    return log.open("wb" if full else "ab")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a server by closing its standard input, and by force where it does not notice."""
    if process.returncode is not None:
        return
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_WAIT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
