"""However the network cuts an answer into pieces, the reader must be told the same."""

import asyncio
import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.dispatch.http1 import HEAD_MAX_BYTES, UNREAD_MAX_BYTES, Connection, request_head
from herd.dispatch.outbox import Outbox
from herd.errors import NodeUnreachable, UpstreamError

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport without a network: it remembers what it was asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False
        self.paused = False
        self.full: Callable[[], None] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        if self.full is not None:
            self.full()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Prompt(Outbox):
    """An outbox that holds nothing back: here is no loop that could take turns."""

    def post(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        transport.write(data)


def connect(wire: Wire, idle: list[Connection] | None = None) -> Connection:
    """Return a connection over `wire`, which notes in `idle` each time that it may be used again."""
    connection = Connection(
        "the node",
        Prompt(),
        silence_max_s=600,
        idle=([] if idle is None else idle).append,
        lost=lambda _: None,
    )
    connection.connection_made(wire)
    return connection


class Told(NamedTuple):
    """All that a reader can learn from an answer, and whether the connection may be used again."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    failure: str
    reusable: bool


async def play(pieces: Iterable[bytes], *, method: str = "GET", eof: bool = True) -> Told:
    wire = Wire()
    idle: list[Connection] = []
    connection = connect(wire, idle)
    answer = connection.send(b"", b"", bodiless=method == "HEAD")
    for piece in pieces:
        if piece and not wire.aborted:
            connection.data_received(piece)
    reusable = bool(idle) and not wire.aborted
    if eof and not wire.aborted:
        connection.eof_received()
    body = bytearray()
    failure = ""
    try:
        async with asyncio.timeout(5):
            await answer.head()
            while data := await answer.read():
                body += data
            assert answer.ended
    except UpstreamError as error:
        failure = error.cause
        assert not answer.ended
    connection.close()
    return Told(answer.status, answer.headers if answer.status else [], bytes(body), failure, reusable)


def told(pieces: Iterable[bytes], *, method: str = "GET", eof: bool = True) -> Told:
    return asyncio.run(play(pieces, method=method, eof=eof))


def cut(data: bytes, positions: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(positions), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


WHOLE = {
    "length": OK + b"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n" + b'{"done":true}',
    "empty": OK + b"Content-Length: 0\r\n\r\n",
    "chunked": CHUNKED + b"4\r\nWiki\r\n6\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\n\r\n",
    "upper and lower hex": CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n00F\r\n0123456789abcde\r\n0\r\n\r\n",
    "extensions": CHUNKED + b'2;name=value\r\nab\r\n1;q="a;b"\r\nc\r\n0;last\r\n\r\n',
    "trailers": CHUNKED + b"2\r\nab\r\n0\r\nX-Sum: 1\r\nContent-Type: text/html\r\n\r\n",
    "nothing chunked": CHUNKED + b"0\r\n\r\n",
    "several zeros": CHUNKED + b"1\r\nx\r\n0000\r\n\r\n",
    "informational": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    + OK
    + b"Content-Length: 2\r\n\r\nhi",
    "no content": b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx",
    "loose header": OK + b"X-Empty:\r\nX-Tab: \t a b \t \r\nX-Latin: \xe9\r\nCONTENT-LENGTH: 1\r\n\r\nx",
    "same header twice": OK + b"Set-Cookie: a\r\nset-cookie: b\r\nContent-Length: 1\r\n\r\nx",
}
LAST = {
    "until the end": OK + b"Content-Type: text/plain\r\n\r\nas much as comes",
    "nothing until the end": OK + b"\r\n",
    "close": OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi",
    "close chunked": OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "old version": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "bytes after close": OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi and more",
    "bytes after the end": OK + b"Content-Length: 2\r\n\r\nhi and more",
    "a second answer": (OK + b"Content-Length: 2\r\n\r\nhi") * 2,
    "a second answer after chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n") * 2,
}
BROKEN = {
    "nothing": b"",
    "half a head": OK + b"Content-Le",
    "informational only": b"HTTP/1.1 100 Continue\r\n\r\n",
    "short": OK + b"Content-Length: 10\r\n\r\nabc",
    "no last chunk": CHUNKED + b"3\r\nabc\r\n",
    "half a chunk": CHUNKED + b"5\r\nabc",
    "half a last chunk": CHUNKED + b"3\r\nabc\r\n0\r\n",
    "most of a huge chunk missing": CHUNKED + b"7fffffffffffffff\r\nabc",
    "half a trailer": CHUNKED + b"3\r\nabc\r\n0\r\nX-Su",
}
IMPROPER = {
    "text": b"SSH-2.0-OpenSSH_9.2\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x50",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "bad status": b"HTTP/1.1 20 OK\r\n\r\n",
    "bad version": b"HTTP/7.7 200 OK\r\n\r\n",
    "bad header name": OK + b"X Y: z\r\n\r\n",
    "nul in a header": OK + b"X-Y: a\0b\r\n\r\n",
    "folded header": OK + b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "bad length": OK + b"Content-Length: 1x\r\n\r\nx",
    "negative length": OK + b"Content-Length: -1\r\n\r\nx",
    "endless length": OK + b"Content-Length: 99999999999999999999999\r\n\r\nx",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
    "length and chunks": OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "gzip coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "coding after chunked": OK + b"Transfer-Encoding: chunked, identity\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "bad chunk size": CHUNKED + b"2\r\nab\r\nxyz\r\n",
    "negative chunk size": CHUNKED + b"2\r\nab\r\n-1\r\nx\r\n",
    "overflowing chunk size": CHUNKED + b"2\r\nab\r\nfffffffffffffffff\r\nx",
    "length after the chunks": CHUNKED + b"2\r\nab\r\n0\r\nContent-Length: 9\r\n\r\n",
    "chunk longer than it says": CHUNKED + b"2\r\nabc\r\n0\r\n\r\n",
    "bare line feed after a chunk": CHUNKED + b"2\r\nab\n0\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n\x00\x00",
    "switching without saying so": b"HTTP/1.1 101 Switching\r\n\r\n",
    "informational with chunks": b"HTTP/1.1 103 Early\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "informational with a body": b"HTTP/1.1 103 Early\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n",
}
HEADS = {
    "length": OK + b"Content-Length: 17\r\n\r\n",
    "chunked": CHUNKED,
    "until the end": OK + b"\r\n",
    "nothing": OK + b"Content-Length: 0\r\n\r\n",
    "error": b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n",
}


async def every_split(data: bytes, method: str = "GET") -> Told:
    """Return what is told of `data`, having compared all cuts in two, near cuts in three, and single bytes."""
    expected = await play([data], method=method)
    assert await play(cut(data, range(1, len(data))), method=method) == expected
    for first in range(len(data) + 1):
        for second in {first, *range(first + 1, min(first + 7, len(data))), len(data)}:
            assert await play(cut(data, (first, second)), method=method) == expected, (first, second)
    return expected


@pytest.mark.parametrize("name", WHOLE)
def test_every_split_of_a_whole_answer_tells_the_same_and_leaves_the_connection_usable(name: str) -> None:
    outcome = asyncio.run(every_split(WHOLE[name]))
    assert outcome.status in (200, 204, 304)
    assert outcome.failure == ""
    assert outcome.reusable


@pytest.mark.parametrize("name", LAST)
def test_every_split_of_an_answer_that_ends_the_connection_tells_the_same(name: str) -> None:
    outcome = asyncio.run(every_split(LAST[name]))
    assert (outcome.status, outcome.failure, outcome.reusable) == (200, "", False)
    assert outcome.body in (b"hi", b"as much as comes", b"")


@pytest.mark.parametrize("name", BROKEN)
def test_every_split_of_an_answer_that_stops_too_soon_is_a_reset(name: str) -> None:
    outcome = asyncio.run(every_split(BROKEN[name]))
    assert (outcome.failure, outcome.reusable) == ("reset", False)


@pytest.mark.parametrize("name", IMPROPER)
def test_every_split_of_what_is_no_answer_is_a_protocol_error(name: str) -> None:
    outcome = asyncio.run(every_split(IMPROPER[name]))
    assert (outcome.failure, outcome.reusable) == ("protocol", False)


@pytest.mark.parametrize("name", HEADS)
def test_every_split_of_an_answer_to_head_has_no_body(name: str) -> None:
    outcome = asyncio.run(every_split(HEADS[name], method="HEAD"))
    assert (outcome.body, outcome.failure, outcome.reusable) == (b"", "", False)


def test_a_body_that_follows_an_answer_to_head_is_not_read() -> None:
    outcome = told([OK + b"Content-Length: 2\r\n\r\nhi"], method="HEAD")
    assert (outcome.status, outcome.body, outcome.failure, outcome.reusable) == (200, b"", "", False)


def test_what_the_canonical_answers_say() -> None:
    assert told([WHOLE["chunked"]]).body == b"Wikipedia in \r\n\r\nchunks."
    assert told([WHOLE["upper and lower hex"]]).body == b"01234567890123456789" + b"0123456789abcde"
    assert told([WHOLE["extensions"]]).body == b"abc"
    assert told([WHOLE["trailers"]]).headers == [(b"transfer-encoding", b"chunked")]
    assert told([WHOLE["informational"]]).headers == [(b"content-length", b"2")]
    assert told([WHOLE["not modified"]]).body == b""
    assert told([WHOLE["loose header"]]).headers == [
        (b"x-empty", b""),
        (b"x-tab", b"a b"),
        (b"x-latin", b"\xe9"),
        (b"content-length", b"1"),
    ]
    assert told([WHOLE["same header twice"]]).headers[:2] == [(b"set-cookie", b"a"), (b"set-cookie", b"b")]
    assert told([LAST["until the end"]]).body == b"as much as comes"
    assert told([LAST["bytes after the end"]]).body == b"hi"


def test_what_came_before_a_failure_is_told_first() -> None:
    assert told([BROKEN["half a chunk"]]).body == b"abc"
    assert told([IMPROPER["bad chunk size"]]).body == b"ab"


def test_a_lost_connection_is_no_clean_end_even_of_a_body_without_length() -> None:
    async def scenario() -> None:
        connection = connect(Wire())
        answer = connection.send(b"", b"", bodiless=False)
        connection.data_received(LAST["until the end"])
        connection.connection_lost(ConnectionResetError("reset by peer"))
        assert await answer.read() == b"as much as comes"
        with pytest.raises(NodeUnreachable, match="reset by peer") as raised:
            await answer.read()
        assert raised.value.cause == "reset"

    asyncio.run(scenario())


token = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=12).map(
    lambda text: b"X-" + text.encode()
)
value = st.text("abc ABC;=\"'/.,\t\xe9", max_size=20).map(lambda text: text.encode("latin-1").strip(b" \t"))
fields = st.lists(st.tuples(token, value), max_size=6)
chunk = st.tuples(
    st.binary(min_size=1, max_size=40),
    st.sampled_from(["%x", "%X", "0%x", "000%X"]),
    st.sampled_from([b"", b";a", b";a=b", b';a="b c"']),
)


def framed(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + b": " + content + b"\r\n" for name, content in headers)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, Told]:
    """A proper answer in any of the three framings, and what it says."""
    status = draw(st.sampled_from([200, 201, 302, 400, 404, 500, 503]))
    headers = draw(fields)
    chunks = draw(st.lists(chunk, max_size=6))
    body = b"".join(data for data, _, _ in chunks)
    framing = draw(st.sampled_from(["length", "chunked", "end"]))
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * draw(st.integers(0, 2))
    if framing == "chunked":
        own = [(b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"])))]
        coded = [(size % len(data)).encode() + ext + b"\r\n" + data + b"\r\n" for data, size, ext in chunks]
        wire = b"".join(coded) + b"0\r\n" + framed(draw(fields)) + b"\r\n"
    elif framing == "length":
        own, wire = [(b"Content-Length", b"%d" % len(body))], body
    else:
        own, wire = [], body
    at = draw(st.integers(0, len(headers)))
    headers = headers[:at] + own + headers[at:]
    data = hints + b"HTTP/1.1 %d Some Reason\r\n" % status + framed(headers) + b"\r\n" + wire
    lower = [(name.lower(), content) for name, content in headers]
    return data, Told(status, lower, body, "", framing != "end")


@given(answers(), st.data())
@settings(max_examples=300)
def test_any_proper_answer_in_any_pieces_is_told_as_it_was_meant(
    answer: tuple[bytes, Told], data: st.DataObject
) -> None:
    wire, meant = answer
    positions = data.draw(st.lists(st.integers(0, len(wire)), max_size=12))
    assert told(cut(wire, positions)) == meant


@given(answers(), st.data())
@settings(max_examples=300)
def test_any_damage_to_an_answer_is_told_the_same_however_it_is_cut(
    answer: tuple[bytes, Told], data: st.DataObject
) -> None:
    wire, _ = answer
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(wire)))
        gone = data.draw(st.integers(0, 3))
        wire = wire[:at] + data.draw(st.binary(max_size=3)) + wire[at + gone :]
    positions = data.draw(st.lists(st.integers(0, len(wire)), max_size=12))
    method = data.draw(st.sampled_from(["GET", "HEAD"]))
    assert told(cut(wire, positions), method=method) == told([wire], method=method)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_at_all_end_in_an_answer_or_a_named_failure(pieces: list[bytes]) -> None:
    assert told(pieces).failure in ("", "reset", "protocol")


ENDLESS = {
    "header line": (OK + b"X-Long: ", b"a" * 1000),
    "header name": (OK, b"a" * 1000),
    "headers": (OK, b"X-Short: a\r\n" * 80),
    "reason": (b"HTTP/1.1 200 ", b"a" * 1000),
    "informational answers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: abcdefgh\r\n\r\n" * 20),
    "chunk extension": (CHUNKED + b"5;", b"a" * 1000),
    "trailers": (CHUNKED + b"0\r\n", b"X-Short: a\r\n" * 80),
    "trailer line": (CHUNKED + b"0\r\nX-Long: ", b"a" * 1000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_framing_without_end_is_a_protocol_error_before_it_fills_the_memory(name: str) -> None:
    start, piece = ENDLESS[name]
    pieces = [start, *[piece] * (2 * HEAD_MAX_BYTES // len(piece))]
    assert told(pieces, eof=False).failure == "protocol"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_head_may_be_as_large_as_the_bound_and_no_larger(at_once: bool) -> None:
    def head(size: int) -> list[bytes]:
        line = b"X-Long: " + b"a" * (size - len(b"X-Long: \r\n"))
        data = OK + line + b"\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
        return [data] if at_once else cut(data, range(0, len(data), 8192))

    assert told(head(HEAD_MAX_BYTES - 100)).failure == ""
    assert told(head(HEAD_MAX_BYTES + 1)).failure == "protocol"


def test_many_small_chunks_are_not_mistaken_for_framing_without_content() -> None:
    body = b"1\r\nx\r\n" * HEAD_MAX_BYTES
    outcome = told(cut(CHUNKED + body + b"0\r\n\r\n", range(0, len(body), 1000)))
    assert (outcome.body, outcome.failure) == (b"x" * HEAD_MAX_BYTES, "")


def test_a_node_has_to_wait_for_a_reader_who_is_slow() -> None:
    async def scenario() -> None:
        wire = Wire()
        connection = connect(wire)
        answer = connection.send(b"", b"", bodiless=False)
        connection.data_received(OK + b"Content-Length: %d\r\n\r\n" % (4 * UNREAD_MAX_BYTES))
        connection.data_received(b"x" * UNREAD_MAX_BYTES)
        assert not wire.paused
        connection.data_received(b"x")
        assert wire.paused
        assert len(await answer.read()) == UNREAD_MAX_BYTES + 1
        assert not wire.paused
        connection.data_received(b"x")
        assert not wire.paused
        connection.data_received(b"x" * (2 * UNREAD_MAX_BYTES))
        assert wire.paused
        answer.abort()

    asyncio.run(scenario())


def test_a_reader_who_is_slow_at_the_end_does_not_leave_the_connection_deaf() -> None:
    async def scenario() -> None:
        wire = Wire()
        idle: list[Connection] = []
        connection = connect(wire, idle)
        answer = connection.send(b"", b"", bodiless=False)
        size = 2 * UNREAD_MAX_BYTES
        connection.data_received(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * (size - 1))
        assert wire.paused
        connection.data_received(b"x")  # was under way when reading was paused
        assert not wire.paused
        assert idle == [connection]
        assert len(await answer.read_all(size)) == size

    asyncio.run(scenario())


def test_each_answer_has_a_bound_of_its_own() -> None:
    async def scenario() -> None:
        idle: list[Connection] = []
        connection = connect(Wire(), idle)
        for _ in range(10):
            answer = connection.send(b"", b"", bodiless=False)
            for piece in cut(OK + b"X-Long: " + b"a" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n", [10_000]):
                connection.data_received(piece)
            assert answer.ended
        assert len(idle) == 10

    asyncio.run(scenario())


def test_an_answer_before_the_request_is_sent_costs_the_connection() -> None:
    async def scenario() -> None:
        wire = Wire()
        idle: list[Connection] = []
        connection = connect(wire, idle)
        wire.full = connection.pause_writing
        answer = connection.send(b"", bytes(1_000_000), bodiless=False)
        connection.data_received(WHOLE["length"])
        assert answer.status == 200
        assert await answer.read() == b'{"done":true}'
        assert answer.ended
        assert idle == []
        assert wire.aborted

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["answered", "aborted"])
def test_a_connection_lets_go_of_a_large_body(how: str) -> None:
    async def scenario() -> None:
        wire = Wire()
        connection = connect(wire)
        body = bytearray(1_000_000)
        wire.full = connection.pause_writing if how == "aborted" else None
        answer = connection.send(b"", body, bodiless=False)
        if how == "answered":
            connection.data_received(WHOLE["length"])
        else:
            answer.abort()
        body.clear()  # raises while anybody has a view of it

    asyncio.run(scenario())


def test_a_request_on_a_connection_that_is_closing_is_not_written() -> None:
    async def scenario() -> None:
        wire = Wire()
        connection = connect(wire)
        wire.abort()
        answer = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", bodiless=False)
        with pytest.raises(NodeUnreachable) as raised:
            await answer.head()
        assert raised.value.cause == "reset"
        assert not answer.heard
        assert wire.written == b""

    asyncio.run(scenario())


def test_a_closed_connection_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        connection = connect(Wire())
        answer = connection.send(b"", b"", bodiless=False)
        reading = asyncio.ensure_future(answer.head())
        await asyncio.sleep(0)
        answer.abort()
        connection.connection_lost(None)
        with pytest.raises(NodeUnreachable):
            await reading
        trace = weakref.ref(connection)
        del connection, answer, reading
        gc.collect()
        assert trace() is None

    asyncio.run(scenario())


def test_a_request_is_written_as_given() -> None:
    headers = [(b"user-agent", b"ollama/0.5"), (b"X-Odd", b"\xe9 b")]
    assert request_head("POST", "/api/chat?a=b", b"ash:11434", headers, 12) == (
        b"POST /api/chat?a=b HTTP/1.1\r\nhost: ash:11434\r\nuser-agent: ollama/0.5\r\nX-Odd: \xe9 b\r\n"
        b"content-length: 12\r\n\r\n"
    )
    assert request_head("GET", "/", b"ash", [], 0) == b"GET / HTTP/1.1\r\nhost: ash\r\n\r\n"
    assert request_head("POST", "/", b"ash", [], 0) == b"POST / HTTP/1.1\r\nhost: ash\r\ncontent-length: 0\r\n\r\n"


@given(
    st.binary(max_size=8), st.sampled_from([b"\r", b"\n", b"\0", b"\r\n", b"\r\nHost: evil\r\n"]), st.binary(max_size=8)
)
def test_no_header_can_carry_a_line_end_or_nul(before: bytes, bad: bytes, after: bytes) -> None:
    for header in ((b"x-a", before + bad + after), (b"x" + before + bad + after, b"a")):
        with pytest.raises(ValueError, match="change its meaning"):
            request_head("POST", "/", b"ash", [(b"a", b"b"), header, (b"c", b"d")], 0)


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/a\n", "/\0", "/ HTTP/1.1\r\nX: y\r\n\r\nGET /", "/\u1234"])
def test_no_target_can_carry_a_second_request(target: str) -> None:
    with pytest.raises(ValueError, match=r"change its meaning|ordinal not in range"):
        request_head("GET", target, b"ash", [], 0)


@pytest.mark.parametrize("name", [b"Host", b"content-length", b"Transfer-Encoding"])
def test_no_header_can_decide_about_the_framing_a_second_time(name: bytes) -> None:
    with pytest.raises(ValueError, match="not the caller's"):
        request_head("POST", "/", b"ash", [(name, b"1")], 1)
