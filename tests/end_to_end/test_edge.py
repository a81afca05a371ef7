"""Clients speak HTTP in ways that no client library shows, so here each byte of a request is the test's own."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from events.sqlite import open_readonly
from events.types import RequestFinished, RequestReceived
from herd.api import door
from tests.end_to_end.process import RouterProcess, router
from tests.end_to_end.world import fleet
from tests.fakes.heartbeat import heartbeat_of
from tests.fakes.ollama import FakeOllama

DEADLINE_S = 20.0

CHAT = "/api/chat"
V1_CHAT = "/v1/chat/completions"
VERSION = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Answer(NamedTuple):
    """One answer, read to its end."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def lines(self) -> list[Any]:
        """What an answer of one JSON value a line says."""
        return [json.loads(line) for line in self.body.splitlines()]


class Wire:
    """A connection to a router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Send, although the other end may have hung up."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of the next answer."""
        async with asyncio.timeout(DEADLINE_S):
            first, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [line.partition(":") for line in rest if line]
        return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields}

    async def answer(self, *, method: str = "POST") -> Answer:
        """Read the next answer, to the end that its head announces."""
        status, headers = await self.head()
        async with asyncio.timeout(DEADLINE_S):
            if method == "HEAD":
                body = b""
            elif "chunked" in headers.get("transfer-encoding", ""):
                body = b"".join([chunk async for chunk in self.chunks()])
            elif "content-length" in headers:
                body = await self._reader.readexactly(int(headers["content-length"]))
            else:
                body = await self._reader.read()
        return Answer(status, headers, body)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Read chunks up to the last, empty one. Raises IncompleteReadError where there is no such end."""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        assert await self._reader.readexactly(2) == b"\r\n"

    async def closed(self) -> bool:
        """Wait for the router to hang up; say whether it said nothing more before."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read() == b""

    async def some(self, most: int) -> bytes:
        """Read what is there, at least a byte of it."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read(most) or pytest.fail("the router hung up")

    def hang_up(self) -> None:
        self._writer.close()


@asynccontextmanager
async def wire(url: str, *, receive_bytes: int = 0) -> AsyncGenerator[Wire]:
    """Connect to a router; with `receive_bytes` the system takes little that is not read."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", int(url.rpartition(":")[2])))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def question(prompt: str = "hello", *, stream: bool = False) -> bytes:
    asked = {"model": "llama3:8b", "messages": [{"role": "user", "content": prompt}], "stream": stream}
    return json.dumps(asked).encode()


def post(
    path: str, body: bytes, *, version: str = "1.1", headers: Mapping[str, str] | None = None, target: str = ""
) -> bytes:
    """A request with a body of known length."""
    fields = {"Host": "localhost", "Content-Length": str(len(body))} | dict(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {target or path} HTTP/{version}\r\n{lines}\r\n".encode() + body


def said(answer: Answer) -> str:
    return json.loads(answer.body)["message"]["content"]


# --- offers, targets and methods ------------------------------------------------------------------------------------

H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}


async def test_an_offer_to_go_on_in_http_2_is_answered_in_http_1(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        offer = "".join(f"{name}: {value}\r\n" for name, value in H2C.items()).encode()
        for _ in range(2):
            await client.send(post(CHAT, question("one two"), headers=H2C))
            answer = await client.answer()
            assert (answer.status, said(answer).split()[:2]) == (200, ["one", "two"])
            await client.send(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % offer)
            answer = await client.answer()
            assert (answer.status, "version" in json.loads(answer.body)) == (200, True)
        assert found.nodes["node-0"].asked(CHAT)[0].body == question("one two")


async def test_a_target_may_be_a_whole_address(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        await client.send(post(CHAT, question(), target=f"{found.url}{CHAT}?a=b"))
        assert (await client.answer()).status == 200
        await client.send(b"GET %b/api/version HTTP/1.1\r\nHost: localhost\r\n\r\n" % found.url.encode())
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("path", [CHAT, V1_CHAT])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_another_method_than_post_is_refused_and_the_connection_goes_on(
    tmp_path: Path, method: str, path: str
) -> None:
    async with fleet(tmp_path) as found, wire(found.url) as client:
        await client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = await client.answer(method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert answer.body == (b"" if method == "HEAD" else b"405 method not allowed")
        await client.send(VERSION)
        assert (await client.answer()).status == 200


# --- one connection, many requests ----------------------------------------------------------------------------------


async def test_requests_sent_ahead_are_answered_in_order(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        await client.send(post(CHAT, question("first")) + post(CHAT, question("second", stream=True)) + VERSION)
        await client.send(VERSION + post(CHAT, question("third")))
        first, second, version, again, third = [await client.answer() for _ in range(5)]
        assert said(first).split()[0] == "first"
        assert second.lines[0]["message"]["content"].strip() == "second"
        assert second.lines[-1]["done"] is True
        assert "version" in json.loads(version.body)
        assert again.body == version.body
        assert said(third).split()[0] == "third"
        assert [request.body for request in found.nodes["node-0"].asked(CHAT)] == [
            question("first"), question("second", stream=True), question("third"),
        ]  # fmt: skip


async def test_a_hundred_requests_share_a_connection(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama(tokens=1)]) as found, wire(found.url) as client:
        for number in range(100):
            await client.send(post(CHAT, question(stream=number % 2 == 0)))
            answer = await client.answer()
            assert (answer.status, answer.headers.get("connection", "keep-alive")) == (200, "keep-alive")
        assert len(found.nodes["node-0"].asked(CHAT)) == 100


async def test_a_client_that_asks_for_the_end_of_the_connection_gets_it(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found:
        for stream in (True, False):
            async with wire(found.url) as client:
                await client.send(post(CHAT, question(stream=stream), headers={"Connection": "close"}))
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await client.closed()


@pytest.mark.parametrize("path", [CHAT, V1_CHAT])
async def test_an_old_client_gets_a_stream_that_ends_with_its_connection(tmp_path: Path, path: str) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        await client.send(post(path, question(stream=True), version="1.0"))
        answer = await client.answer()
        assert answer.status == 200
        assert "transfer-encoding" not in answer.headers
        assert answer.body.endswith(b"data: [DONE]\n\n" if path == V1_CHAT else b"}\n")
        assert await client.closed()


async def test_an_old_client_gets_a_whole_answer(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        await client.send(post(CHAT, question(), version="1.0"))
        answer = await client.answer()
        assert json.loads(answer.body)["done"] is True
        assert "transfer-encoding" not in answer.headers
        assert await client.closed()


# --- bodies ---------------------------------------------------------------------------------------------------------


async def test_a_body_may_come_in_chunks(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        body = question("in pieces")
        await client.send(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for start in range(0, len(body), 10):
            part = body[start : start + 10]
            await client.send(b"%x;note=1\r\n%b\r" % (len(part), part))
            await client.send(b"\n")
        await client.send(b"0\r\nX-Trailer: 1\r\n\r\n" + VERSION)
        assert said(await client.answer()).split()[:2] == ["in", "pieces"]
        assert (await client.answer()).status == 200
        assert found.nodes["node-0"].asked(CHAT)[0].body == body


async def test_a_client_that_asks_before_it_sends_its_body_is_told_to(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        request = post(CHAT, question(), headers={"Expect": "100-continue"})
        head, _, body = request.partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert await client.head() == (100, {})
        await client.send(body)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("path", [CHAT, V1_CHAT])
@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}])
async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(
    tmp_path: Path, path: str, expect: dict[str, str]
) -> None:
    async with fleet(tmp_path, [FakeOllama()], body_max_mib=1) as found, wire(found.url) as client:
        await client.send(post(path, b"", headers={"Content-Length": str(2 << 20), **expect}))
        answer = await client.answer()
        assert answer.status == 413
        error = json.loads(answer.body)["error"]
        assert isinstance(error if path == CHAT else error["message"], str)
        assert await client.closed()
        assert found.nodes["node-0"].asked(path) == []


async def test_a_body_that_grows_too_large_is_refused_and_what_comes_of_it_still_is_not_heard(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()], body_max_mib=1) as found, wire(found.url) as client:
        await client.send(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        sending = asyncio.create_task(client.send((b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16))) * 40))
        assert (await client.answer()).status == 413
        assert await client.closed()
        await sending


async def test_a_body_of_the_largest_size_is_taken(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()], body_max_mib=1) as found, wire(found.url) as client:
        body = question().ljust(1 << 20)
        await client.send(post(CHAT, body))
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("path", [CHAT, "/heartbeat"])
@pytest.mark.parametrize("garbage", [b"zz\r\nhello\r\n0\r\n\r\n", b"5\r\nhello, world\r\n0\r\n\r\n", b"-1\r\n\r\n"])
async def test_chunks_that_are_none_are_refused(tmp_path: Path, path: str, garbage: bytes) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        await client.send(head + garbage)
        assert (await client.answer()).status == 400
        assert await client.closed()
        assert found.nodes["node-0"].asked(CHAT) == []
        assert (found.open_requests, found.in_flight) == (0, 0)


@pytest.mark.parametrize("path", [CHAT, "/api/version"])
async def test_a_head_without_end_is_refused(tmp_path: Path, path: str) -> None:
    async with fleet(tmp_path) as found, wire(found.url) as client:
        await client.send(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode())
        sending = asyncio.create_task(client.send(b"X-More: %b\r\n" % (b"x" * 1000) * 400))
        assert (await client.answer()).status in (400, 431)
        assert await client.closed()
        await sending


# --- clients that leave, or do not read -----------------------------------------------------------------------------


async def test_a_client_that_leaves_with_another_request_sent_ahead_frees_the_slot(tmp_path: Path) -> None:
    node = FakeOllama(tokens=100_000, delay_ms=2)
    async with fleet(tmp_path, [node]) as found, wire(found.url) as client:
        await client.send(post(CHAT, question("first", stream=True)))
        await node.until(lambda: node.generated > 2)
        await client.send(post(CHAT, question("second", stream=True)) + VERSION)
        client.hang_up()
        await node.until(lambda: len(node.disconnects) == 1)
        await found.until(lambda: (found.in_flight, found.open_requests) == (0, 0))
        assert [request.body for request in node.asked(CHAT)] == [question("first", stream=True)]
        assert [event.outcome for event in await found.events(RequestFinished)] == ["cancelled"]
        assert (await found.client.get("/api/version")).status_code == 200


async def test_a_client_that_stops_reading_loses_its_stream_and_frees_the_slot(tmp_path: Path) -> None:
    node = FakeOllama()
    node.faults.big_final_bytes = 32 << 20  # more than all buffers on the way take
    async with fleet(tmp_path, [node], read_timeout=0.5) as found, wire(found.url, receive_bytes=4096) as client:
        await client.send(post(CHAT, question(stream=True)))
        assert (await client.head())[0] == 200
        await node.until(lambda: len(node.disconnects) == 1)
        await found.until(lambda: (found.in_flight, found.open_requests) == (0, 0))
        assert [event.outcome for event in await found.events(RequestFinished)] == ["cancelled"]


# --- a router that stops --------------------------------------------------------------------------------------------


def introduce(found: RouterProcess, node: FakeOllama) -> None:
    found.http.post("/heartbeat", json=heartbeat_of(node, "node-0")).raise_for_status()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_what_ends_within_the_grace_of_a_stop_ends_as_it_should(tmp_path: Path, port: int) -> None:
    async with FakeOllama(num_parallel=2) as node:
        node.faults.stall_after_lines, node.faults.first_byte_delay_ms = 2, 500
        with router(tmp_path, port) as found:
            await asyncio.to_thread(introduce, found, node)
            async with wire(found.url) as streamed, wire(found.url) as whole:
                await streamed.send(post(CHAT, question(stream=True)))
                await whole.send(post(CHAT, question()))
                await node.until(lambda: len(node.asked(CHAT)) == 2)
                stopping = asyncio.create_task(asyncio.to_thread(found.stop))
                async with asyncio.timeout(DEADLINE_S):
                    while await listening(port):  # noqa: ASYNC110 -- another process, no event
                        await asyncio.sleep(0.02)
                node.faults.clear()
                assert (await streamed.answer()).lines[-1]["done"] is True
                assert json.loads((await whole.answer()).body)["done"] is True
                assert await streamed.closed()
                assert await whole.closed()
            assert await stopping == 0


async def listening(port: int) -> bool:
    """Say whether a router still takes connections."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def test_a_stream_that_outlives_the_grace_of_a_stop_ends_in_an_error_of_its_dialect(
    tmp_path: Path, port: int
) -> None:
    async with FakeOllama(tokens=100_000, delay_ms=5, num_parallel=2) as node:
        with router(tmp_path, port, shutdown_grace="0.2") as found:
            await asyncio.to_thread(introduce, found, node)
            async with wire(found.url) as native, wire(found.url) as openai:
                await native.send(post(CHAT, question(stream=True)))
                await openai.send(post(V1_CHAT, question(stream=True)))
                await node.until(lambda: len(node.seen) == 2 and node.generated > 4)
                stopping = asyncio.create_task(asyncio.to_thread(found.stop))
                (chat, v1) = await asyncio.gather(native.answer(), openai.answer())
                assert isinstance(chat.lines[-1]["error"], str)
                last = v1.body.rstrip().splitlines()[-1]
                assert isinstance(json.loads(last.removeprefix(b"data: "))["error"]["message"], str)
                assert b"[DONE]" not in v1.body
                assert await native.closed()
                assert await openai.closed()
            assert await stopping == 0
        assert len(node.disconnects) == 2


# --- what strangers send ---------------------------------------------------------------------------------------------


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


async def test_an_offer_does_not_hide_that_the_connection_shall_end(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        await client.send(post(CHAT, question(), headers=H2C | {"Connection": "close, Upgrade"}))
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed()


async def test_garbage_behind_a_request_leaves_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(tmp_path) as found, wire(found.url) as client:
        await client.send(VERSION + b"\x00garbage\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed()
        assert (await found.client.get("/api/version")).status_code == 200
    assert faults(caplog) == []


@pytest.mark.parametrize("trailers", [b"x-more: yes\r\n" * 20_000, b"x-more: " + b"y" * 300_000])
@pytest.mark.parametrize("path", [CHAT, "/heartbeat"])
async def test_trailers_without_end_are_refused(tmp_path: Path, path: str, trailers: bytes) -> None:
    async with fleet(tmp_path) as found, wire(found.url) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n"
        await client.send(head.encode())
        sending = asyncio.create_task(client.send(trailers))
        assert (await client.answer()).status == 431
        await sending


async def test_a_trailer_is_no_header(tmp_path: Path) -> None:
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        body = question()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
        )
        await client.send(head + body + b"\r\n0\r\nUser-Agent: late\r\n\r\n")
        assert (await client.answer()).status == 200
        assert "late" not in str(found.nodes["node-0"].asked(CHAT)[0].headers)


async def test_a_report_that_waited_for_its_turn_must_arrive_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "BODY_SILENCE_MAX_S", 0.3)
    async with fleet(tmp_path, [FakeOllama()]) as found, wire(found.url) as client:
        late = b"POST /heartbeat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
        await client.send(post(CHAT, question()) + late)
        assert (await client.answer()).status == 200
        with contextlib.suppress(ConnectionError):
            assert await client.closed()


async def test_a_client_that_reads_slowly_gets_its_whole_answer(tmp_path: Path) -> None:
    node = FakeOllama()
    node.faults.big_final_bytes = 24 << 20
    async with fleet(tmp_path, [node], read_timeout=0.5) as found, wire(found.url, receive_bytes=65536) as client:
        await client.send(post(CHAT, question()))
        _, headers = await client.head()
        left = int(headers["content-length"])
        while left:
            left -= len(await client.some(1 << 18))
            await asyncio.sleep(0.01)


async def test_a_second_signal_lets_no_request_begin_that_was_sent_ahead(tmp_path: Path, port: int) -> None:
    async with FakeOllama(tokens=100_000, delay_ms=5) as node:
        with router(tmp_path, port, shutdown_grace="60") as found:
            await asyncio.to_thread(introduce, found, node)
            async with wire(found.url) as client:
                await client.send(post(CHAT, question()) * 5)
                await node.until(lambda: node.generated > 4)
                found.process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(DEADLINE_S):
                    while await listening(port):  # noqa: ASYNC110 -- another process, no event
                        await asyncio.sleep(0.02)
                assert await asyncio.to_thread(found.stop) == 0
                assert (await client.answer()).status == 503
                assert await client.closed()
    with contextlib.closing(open_readonly(tmp_path / "latency.db")) as log:
        events = [each.event for each in log.read()]
    received = [event.request for event in events if isinstance(event, RequestReceived)]
    assert [event.request for event in events if isinstance(event, RequestFinished)] == received
