"""Our own HTTP client is kept only while it is several times cheaper than the general ones: measured here, in one run.

Run `python -m bench.upstream`. A trivial server runs in a second process; every client sends the same requests to it,
in turns, so that a change of the machine's mood meets all of them. The ratios carry to other machines, the figures not.
"""

import argparse
import asyncio
import importlib
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx
import uvloop

from herd.dispatch.upstream import Upstream

REQUEST = b'{"model":"llama3:8b","stream":true,"messages":[{"role":"user","content":"' + b"x" * 1850 + b'"}]}'
WHOLE = b'{"model":"llama3:8b","message":{"role":"assistant","content":"' + b"y" * 430 + b'"},"done":true}'
LINE = b'{"model":"llama3:8b","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":" word"}}\n'
CHUNKS = 50
CHUNK_GAP_S = 0.005
HEADERS = [
    (b"user-agent", b"ollama/0.9 (amd64 linux) Go/go1.24"),
    (b"content-type", b"application/json"),
    (b"accept", b"application/x-ndjson"),
]

Ask = Callable[[str], Awaitable[int]]


class Server(asyncio.Protocol):
    """Answers `/whole` at once and `/stream` in paced chunks; knows only the requests that this file sends."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head = self.received.find(b"\r\n\r\n")
        if head < 0 or len(self.received) < head + 4 + len(REQUEST):
            return
        streams = b"/stream" in self.received[:40]
        self.received = b""
        if not streams:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)
            self.transport.write(head + WHOLE)
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.say(CHUNKS)

    def say(self, left: int) -> None:
        if left:
            self.transport.write(b"%x\r\n%b\r\n" % (len(LINE), LINE))
            asyncio.get_running_loop().call_later(CHUNK_GAP_S, self.say, left - 1)
        else:
            self.transport.write(b"0\r\n\r\n")


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the parent leaves


class Load(NamedTuple):
    name: str
    path: str
    at_once: int
    per_request: int
    """How many of what is counted (requests or chunks) a request brings."""


LOADS = (
    Load("1 request at a time", "/whole", 1, 1),
    Load("16 at a time", "/whole", 16, 1),
    Load("64 at a time", "/whole", 64, 1),
    Load("64 streams, per chunk", "/stream", 64, CHUNKS),
)


class Figures(NamedTuple):
    per_s: float
    cpu_us: float


async def press(ask: Ask, load: Load, seconds: float) -> Figures:
    """Keep `at_once` requests going for a while; return what came per second and its CPU time in this process."""
    expected = len(LINE) * CHUNKS if load.path == "/stream" else len(WHOLE)
    done = 0

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < until:
            assert await ask(load.path) == expected
            done += 1

    until = time.perf_counter() + seconds / 4  # until all is warm
    await asyncio.gather(*(worker() for _ in range(load.at_once)))
    done = 0
    began, cpu = time.perf_counter(), time.process_time()
    until = began + seconds
    await asyncio.gather(*(worker() for _ in range(load.at_once)))
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    count = done * load.per_request
    return Figures(count / elapsed, cpu / count * 1e6)


def ask_own(upstream: Upstream, url: str) -> Ask:
    async def ask(path: str) -> int:
        answer = await upstream.send(url, "POST", path, HEADERS, REQUEST)
        size = 0
        while data := await answer.read():
            size += len(data)
        return size

    return ask


def ask_httpx(client: httpx.AsyncClient, url: str) -> Ask:
    async def ask(path: str) -> int:
        size = 0
        async with client.stream("POST", url + path, headers=HEADERS, content=REQUEST) as response:
            async for data in response.aiter_raw():
                size += len(data)
        return size

    return ask


def ask_aiohttp(session: Any, url: str) -> Ask:
    headers = {name.decode(): content.decode() for name, content in HEADERS}

    async def ask(path: str) -> int:
        size = 0
        async with session.post(url + path, data=REQUEST, headers=headers) as response:
            async for data in response.content.iter_any():
                size += len(data)
        return size

    return ask


async def compare(url: str, seconds: float, rounds: int) -> None:
    upstream = Upstream(connect_timeout_s=5, read_timeout_s=60)
    client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None), trust_env=False, verify=False)
    asks = {"own": ask_own(upstream, url), "httpx": ask_httpx(client, url)}
    session: Any = None
    if importlib.util.find_spec("aiohttp"):
        aiohttp: Any = importlib.import_module("aiohttp")
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        asks["aiohttp"] = ask_aiohttp(session, url)
    print(f"{'load':24}{'client':10}{'per second':>12}{'CPU us each':>13}{'times own CPU':>15}")
    for load in LOADS:
        runs: dict[str, list[Figures]] = {name: [] for name in asks}
        for _ in range(rounds):
            for name, ask in asks.items():
                runs[name].append(await press(ask, load, seconds))
        for name, figures in runs.items():
            per_s = statistics.median(run.per_s for run in figures)
            cpu_us = statistics.median(run.cpu_us for run in figures)
            ratio = statistics.median(run.cpu_us / own.cpu_us for run, own in zip(figures, runs["own"], strict=True))
            print(f"{load.name:24}{name:10}{per_s:12,.0f}{cpu_us:13,.1f}{ratio:15.1f}")
    await upstream.close()
    await client.aclose()
    if session is not None:
        await session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="be the server (used by the benchmark itself)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each client at each load")
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve())
        return
    command = [sys.executable, "-m", "bench.upstream", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        uvloop.run(compare(url, arguments.seconds, arguments.rounds))
        server.communicate()


if __name__ == "__main__":
    main()
