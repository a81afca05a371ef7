"""The built-in server is there while the agent is, and no longer."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from herd.node.address import free_port
from herd.node.engines.embedded import Command, Embedded
from tests.herd.node.web import eventually

#: A server that is healthy, says its process id, and ends when its standard input does.
SERVER = """
import http.server, os, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
print("serving", flush=True)
server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
while sys.stdin.buffer.read(100): pass
os._exit(0)
"""


def command(host: str, port: int) -> Sequence[str]:
    return (sys.executable, "-c", SERVER, host, str(port))


def broken(host: str, port: int) -> Sequence[str]:
    return (sys.executable, "-c", "raise SystemExit(7)")


def absent(host: str, port: int) -> Sequence[str]:
    return ("/no/such/program",)


@asynccontextmanager
async def embedded(home: Path, make: Command = command) -> AsyncGenerator[Embedded]:
    async with httpx.AsyncClient(trust_env=False) as client:
        engine = Embedded(home, client, command=make, environment=os.environ, jitter=lambda: 0.0, backoff_first_s=0.02)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


async def pid_at(url: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        return int((await client.get(f"{url}/health")).text)


async def up(engine: Embedded) -> Embedded:
    """Return the engine when it answers. Its port was free a moment ago; if somebody took it, it tries another."""
    for _ in range(1000):
        if (await engine.report()).up:
            return engine
        await asyncio.sleep(0.02)
    raise AssertionError(engine.trouble)


def failures(engine: Embedded) -> int:
    found = re.search(r"(\d+) in a row", engine.trouble)
    return int(found[1]) if found else 0


async def test_it_serves_one_model_on_loopback_and_ends_with_the_agent(tmp_path: Path) -> None:
    async with embedded(tmp_path) as engine:
        report = await (await up(engine)).report()
        assert (report.up, report.dialect, report.name, report.parallel) == (True, "openai", "llama.cpp", 2)
        assert report.url.startswith("http://127.0.0.1:")
        assert report.models is not None
        assert report.loaded is not None
        assert [model.name for model in (*report.models, *report.loaded)] == ["smollm2:135m"] * 2
        assert engine.trouble == ""
        pid = await pid_at(report.url)
    assert not psutil.pid_exists(pid)
    assert "serving" in (tmp_path / "logs" / "llama-server.log").read_text()


async def test_it_is_started_again_when_it_dies(tmp_path: Path) -> None:
    async with embedded(tmp_path) as engine:
        first = await pid_at((await up(engine)).url)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: not psutil.pid_exists(first))
        assert await pid_at((await up(engine)).url) != first
        assert engine.trouble == ""


async def test_one_that_cannot_run_is_down_and_says_where_to_look(tmp_path: Path) -> None:
    async with embedded(tmp_path, broken) as engine:
        report = await engine.report()
        assert (report.up, report.loaded) == (False, ())
        assert report.models is not None
        assert len(report.models) == 1
        assert "code 7" in engine.trouble
        assert "llama-server.log" in engine.trouble
        await eventually(lambda: failures(engine) >= 3)


async def test_a_program_that_is_not_there_does_not_end_the_minding(tmp_path: Path) -> None:
    async with embedded(tmp_path, absent) as engine:
        assert not (await engine.report()).up
        await eventually(lambda: failures(engine) >= 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers on all of 127.0.0.0/8")
async def test_it_moves_to_where_the_router_can_reach_it(tmp_path: Path) -> None:
    async with embedded(tmp_path) as engine:
        before = await pid_at((await up(engine)).url)
        await engine.be_reachable_at("127.0.0.2")
        report = await (await up(engine)).report()
        assert report.up
        assert report.url.startswith("http://127.0.0.2:")
        assert not psutil.pid_exists(before)
        after = await pid_at(engine.url)
        await engine.be_reachable_at("127.0.0.2")
        assert await pid_at(engine.url) == after


AGENT = """
import asyncio, httpx, os, sys, pathlib
from herd.node.engines.embedded import Command, Embedded
from tests.herd.node.test_embedded import command
async def main():
    async with httpx.AsyncClient(trust_env=False) as client:
        engine = Embedded(
            pathlib.Path(sys.argv[1]), client, command=command, environment=os.environ, jitter=lambda: 0.0
        )
        await engine.start()
        print(engine.url, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_it_does_not_outlive_an_agent_that_is_killed(tmp_path: Path) -> None:
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    try:
        url = (await agent.stdout.readline()).decode().strip()
        pid = await pid_at(url)
    finally:
        agent.kill()
        await agent.wait()
    await eventually(lambda: not psutil.pid_exists(pid))


def test_a_free_port_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port("127.0.0.1")))
