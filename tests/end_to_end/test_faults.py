"""What happens to a router that is killed, started twice, or given a disk that does not work."""

import contextlib
import hashlib
import resource
import signal
import socket
import subprocess
import threading
from asyncio import to_thread
from pathlib import Path
from typing import Any

import httpx
import pytest

from events.sqlite import driver, open_readonly
from events.types import RequestFinished, RequestReceived, RouterRecovered
from projections.runner import verify_file
from tests.end_to_end.process import RouterProcess, command, environment, router
from tests.end_to_end.world import fleet
from tests.fakes.heartbeat import heartbeat_of
from tests.fakes.ollama import FakeOllama


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refused(home: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, port), env=environment(), capture_output=True, text=True, timeout=30, check=False
    )


def introduce(found: RouterProcess, node: FakeOllama, name: str = "node-0") -> None:
    found.http.post("/heartbeat", json=heartbeat_of(node, name)).raise_for_status()


def chat(found: RouterProcess, **body: Any) -> httpx.Response:
    asked = {"model": "llama3:8b", "messages": [{"role": "user", "content": "hello"}], "stream": False, **body}
    return found.http.post("/api/chat", json=asked)


async def test_a_killed_router_loses_nothing_acknowledged_and_finishes_what_was_open(tmp_path: Path, port: int) -> None:
    async with FakeOllama(num_parallel=64, tokens=5, delay_ms=2) as node:
        with router(tmp_path, port) as found:
            await to_thread(introduce, found, node)
            answered: list[str] = []

            def load() -> None:
                while True:
                    try:
                        answered.append(chat(found).headers["x-request-id"])
                    except (httpx.TransportError, KeyError):
                        return

            workers = [threading.Thread(target=load) for _ in range(6)]
            for worker in workers:
                worker.start()
            await node.until(lambda: len(node.asked("/api/chat")) > 60, timeout_s=20)
            found.kill()
            for worker in workers:
                await to_thread(worker.join)
        with router(tmp_path, port) as found:
            health = (await to_thread(found.http.get, "/healthz")).json()
            assert health["requests_open"] == 0
            assert await to_thread(found.stop) == 0
    reader = open_readonly(tmp_path / "latency.db")
    log = list(reader.read())
    reader.close()
    assert [recorded.seq for recorded in log] == list(range(1, len(log) + 1))
    received = {recorded.event.request for recorded in log if isinstance(recorded.event, RequestReceived)}
    endings = [recorded.event for recorded in log if isinstance(recorded.event, RequestFinished)]
    assert len(endings) == len({ending.request for ending in endings}) == len(received)
    abandoned = [ending for ending in endings if ending.outcome == "abandoned"]
    recovered = [recorded.event for recorded in log if isinstance(recorded.event, RouterRecovered)]
    assert sum(event.abandoned for event in recovered) == len(abandoned)
    # An answer that a client has had may be missing only if it ended within the last moments before the kill.
    assert len(set(answered[:-40]) - received) == 0
    assert verify_file(tmp_path / "latency.db").ok


async def test_told_twice_a_router_does_not_wait_for_what_runs(tmp_path: Path, port: int) -> None:
    async with FakeOllama(tokens=100_000, delay_ms=20) as node:
        with router(tmp_path, port) as found:
            await to_thread(introduce, found, node)
            worker = threading.Thread(target=chat_in_vain, args=(found,))
            worker.start()
            await node.until(lambda: bool(node.asked("/api/chat")))
            found.process.send_signal(signal.SIGINT)
            await to_thread(threading.Event().wait, 0.2)
            found.process.send_signal(signal.SIGINT)
            assert await to_thread(found.process.wait, 15) == 0
            await to_thread(worker.join)
    reader = open_readonly(tmp_path / "latency.db")
    endings = [recorded.event for recorded in reader.read() if isinstance(recorded.event, RequestFinished)]
    reader.close()
    assert [ending.outcome for ending in endings] == ["abandoned"]


def chat_in_vain(found: RouterProcess) -> None:
    with contextlib.suppress(httpx.TransportError):
        chat(found)


async def test_the_fleet_is_known_again_after_a_restart(tmp_path: Path) -> None:
    node = FakeOllama()
    async with fleet(tmp_path, [node]) as found:
        assert (await found.chat()).status_code == 200
    async with node, fleet(tmp_path) as found:
        assert (await found.chat()).status_code == 200
        assert (await found.status())["queues"]["node-0:llama3:8b"]["completed"] == 2


async def test_a_second_router_on_one_directory_refuses(tmp_path: Path, port: int) -> None:
    async with fleet(tmp_path):
        second = await to_thread(refused, tmp_path, port)
        assert second.returncode == 1
        assert "latency.db" in second.stderr
        assert "hint:" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_taken_port_is_told_with_a_hint(tmp_path: Path, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        answer = refused(tmp_path, port)
    assert answer.returncode == 1
    assert f"127.0.0.1:{port}" in answer.stderr
    assert "--port" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_peers_database_is_recognised_and_left_unharmed(tmp_path: Path, port: int) -> None:
    database = tmp_path / "latency.db"
    connection = driver.connect(database)
    connection.executescript(
        "CREATE TABLE request_traces (id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL);"
        "CREATE TABLE latency_observations (id INTEGER PRIMARY KEY, node_id TEXT NOT NULL);"
        "INSERT INTO request_traces (request_id) VALUES ('kept');"
    )
    connection.close()
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    answer = refused(tmp_path, port)
    assert answer.returncode == 1
    assert "ollama-herd" in answer.stderr
    assert "mv " in answer.stderr
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path, port: int) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a directory")
    answer = refused(blocker / "home", port)
    assert answer.returncode == 1
    assert str(blocker) in answer.stderr
    assert "Traceback" not in answer.stderr


def largest_file(home: Path) -> int:
    return max(path.stat().st_size for path in home.glob("latency.db*"))


async def test_a_full_disk_stops_the_log_and_not_the_service(tmp_path: Path, port: int) -> None:
    # The limit on file size makes every write beyond it fail with the error of a full disk's kin, for root as well.
    async with FakeOllama(num_parallel=8) as node:
        with router(tmp_path, port) as found:
            await to_thread(introduce, found, node)
            pid = found.process.pid
            size = largest_file(tmp_path)
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
            health: dict[str, Any] = {}
            for _ in range(400):
                assert (await to_thread(chat, found)).status_code == 200
                health = (await to_thread(found.http.get, "/healthz")).json()
                if health["status"] == "degraded":
                    break
            assert health["status"] == "degraded"
            assert health["log"]["failure"]
            assert (await to_thread(chat, found)).status_code == 200
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            for _ in range(200):
                health = (await to_thread(found.http.get, "/healthz")).json()
                if health["status"] == "ok" and not health["log"]["queued"]:
                    break
                await to_thread(threading.Event().wait, 0.05)
            assert health["status"] == "ok"
            await to_thread(found.stop)
    assert verify_file(tmp_path / "latency.db").ok
