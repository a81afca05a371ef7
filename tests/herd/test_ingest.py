"""The endpoint of the agents refuses what would harm the router, and says so once."""

import asyncio
import json
import socket
from typing import Any, cast

import pytest
from litestar import Litestar
from litestar.datastructures import State
from litestar.testing import TestClient

from events.clock import ManualClock
from events.recorded import Recorded
from events.store import StoreUnavailable
from events.types import Engine, Event, Hardware, NodeJoined, RequestDispatched, RequestEnqueued, RequestReceived
from herd.api.ingest import HANDLERS, NODES_MAX
from herd.api.state import Shared
from herd.core import Core
from projections.view import VIEW, View
from tests.herd.test_heartbeat import body


class FakeStore:
    """Says when it was waited for, and waits or fails as it is told."""

    def __init__(self, clock: ManualClock) -> None:
        self.waited_for: list[int] = []
        self.stamp = clock.now
        self.stalls = False
        self.fails = ""

    async def flushed(self, seq: int) -> None:
        self.waited_for.append(seq)
        if self.fails:
            raise StoreUnavailable(self.fails)
        if self.stalls:
            await asyncio.Event().wait()


class FakeCore:
    """As much of the core as the endpoint uses."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = FakeStore(self.clock)
        self.view = View()

    def record(self, event: Event) -> Recorded:
        seq = self.view.seq + 1
        recorded = Recorded(seq=seq, id=f"{seq:032x}", at=self.clock.now(), writer="w", writer_seq=seq, event=event)
        self.view = VIEW.apply(self.view, recorded)
        return recorded


@pytest.fixture(name="core")
def make_core() -> FakeCore:
    return FakeCore()


@pytest.fixture(name="client")
def make_client(core: FakeCore) -> TestClient[Litestar]:
    return TestClient(app(core))


def app(core: FakeCore) -> Litestar:
    nothing: Any = None
    shared = Shared(core=cast("Core", core), settings=nothing, traces=nothing)
    return Litestar(route_handlers=list(HANDLERS), state=State({"shared": shared}), openapi_config=None)


def test_a_report_is_taken(client: TestClient[Litestar], core: FakeCore) -> None:
    with client:
        answer = client.post("/heartbeat", content=body())
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "node_status": "online", "in_flight": 0, "waiting": 0}
    assert core.view.fleet.nodes["mac-studio"].status == "online"


def test_a_report_that_makes_no_sense_is_refused_with_its_field(client: TestClient[Litestar], core: FakeCore) -> None:
    with client:
        answer = client.post("/heartbeat", content=body(memory={"total_gb": "much"}))
    assert answer.status_code == 400
    assert answer.json()["field"] == "memory.total_gb"
    assert "Expected `float`" in answer.json()["error"]
    assert core.view.fleet.nodes == {}


def test_an_agent_is_told_how_much_work_it_still_has(client: TestClient[Litestar], core: FakeCore) -> None:
    def receive(request: str) -> None:
        core.record(
            RequestReceived(
                request=request, kind="chat", dialect="ollama", path="/api/chat", model="m", asked="m", streaming=True
            )
        )

    with client:
        client.post("/heartbeat", content=body())
        receive("1")
        receive("2")
        core.record(RequestDispatched(request="1", attempt=1, node="mac-studio", model="m"))
        core.record(RequestEnqueued(request="2", attempt=1, node="mac-studio", model="m"))
        answer = client.post("/heartbeat", content=body(draining=True))
    assert answer.json() == {"status": "draining", "node_status": "draining", "in_flight": 1, "waiting": 1}


def test_a_drain_and_a_farewell_are_answered_after_they_are_stored(
    client: TestClient[Litestar], core: FakeCore
) -> None:
    drained: list[int] = []
    with client:
        client.post("/heartbeat", content=body())
        assert core.store.waited_for == []
        client.post("/heartbeat", content=body(draining=True))
        drained += core.store.waited_for
        assert drained == [core.view.seq]
        client.post("/heartbeat", content=body(draining=True))
        assert core.store.waited_for == drained  # nothing new was promised
        client.post("/heartbeat", content=body(draining=True, leaving=True))
    assert core.store.waited_for == [*drained, core.view.seq]


def test_a_disk_that_fails_does_not_hold_up_an_agent_that_stops(
    client: TestClient[Litestar], core: FakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    core.store.fails = "no space left"
    with client:
        client.post("/heartbeat", content=body())
        answer = client.post("/heartbeat", content=body(draining=True))
    assert (answer.status_code, answer.json()["status"]) == (200, "draining")
    assert "mac-studio was answered before its farewell was stored: no space left" in caplog.text


def test_a_disk_that_stalls_holds_up_an_agent_that_stops_for_a_moment_only(
    client: TestClient[Litestar], core: FakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    core.store.stalls = True
    with client:
        client.post("/heartbeat", content=body())
        assert client.post("/heartbeat", content=body(draining=True)).status_code == 200
    assert "not within 1 s" in caplog.text


def reports_from(client: TestClient[Litestar], core: FakeCore, *urls: str, every_s: float = 2.5) -> None:
    """Report from one address after the other, as one node."""
    with client:
        for url in urls:
            assert client.post("/heartbeat", content=body(ollama_host=url, lan_ip="10.9.9.9")).status_code == 200
            core.clock.advance(s=every_s)


ONE, OTHER = "http://192.168.1.20:11434", "http://192.168.1.21:11434"


def test_two_machines_of_one_name_are_told_once(
    client: TestClient[Litestar], core: FakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    reports_from(client, core, *(ONE, OTHER) * 5)
    assert caplog.text.count("two machines seem to report as mac-studio, from 192.168.1.20 and 192.168.1.21") == 1
    assert "--node-id" in caplog.text


@pytest.mark.parametrize(
    ("urls", "every_s"),
    [
        ((ONE, OTHER, OTHER, OTHER), 2.5),
        ((ONE, "http://192.168.1.20:8080", ONE, "http://192.168.1.20:8080"), 2.5),
        ((ONE, OTHER, "http://192.168.1.22:11434"), 2.5),
        ((ONE, OTHER, ONE, OTHER), 11.0),
    ],
    ids=["moved", "another port", "moved twice", "slowly"],
)
def test_a_machine_that_moves_is_not_taken_for_two(
    client: TestClient[Litestar],
    core: FakeCore,
    caplog: pytest.LogCaptureFixture,
    urls: tuple[str, ...],
    every_s: float,
) -> None:
    reports_from(client, core, *urls, every_s=every_s)
    assert "two machines" not in caplog.text
    assert core.view.fleet.nodes["mac-studio"].url == urls[-1]


def test_a_mistake_that_is_repeated_is_logged_once(
    client: TestClient[Litestar], caplog: pytest.LogCaptureFixture
) -> None:
    with client:
        for _ in range(3):
            assert client.post("/heartbeat", content=body(ollama_host="https://x")).status_code == 400
            assert client.post("/heartbeat", content=body(ollama_host="ftp://x")).status_code == 400
        client.post("/heartbeat", content=body(node_id="a:b"))
    assert caplog.text.count("was refused: ollama_host") == 2
    assert caplog.text.count("was refused: node_id") == 1


def at_router(core: FakeCore) -> TestClient[Litestar]:
    return TestClient(app(core), base_url="http://router.local:11435")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", socket.gethostname()])
def test_an_engine_that_is_the_router_itself_is_refused(core: FakeCore, host: str) -> None:
    with at_router(core) as client:
        answer = client.post("/heartbeat", content=body(ollama_host=f"http://{host}:11435", lan_ip=""))
        assert (answer.status_code, answer.json()["field"]) == (400, "ollama_host")
        assert "this router itself" in answer.json()["error"]
        assert core.view.fleet.nodes == {}
        assert client.post("/heartbeat", content=body(ollama_host=f"http://{host}:11434")).status_code == 200


def test_an_engine_on_another_machine_may_well_have_the_routers_port(core: FakeCore) -> None:
    with at_router(core) as client:
        assert client.post("/heartbeat", content=body(ollama_host="http://192.0.2.77:11435")).status_code == 200


def test_a_fleet_takes_so_many_nodes_and_no_more(
    client: TestClient[Litestar], core: FakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(NODES_MAX - 1):
        core.record(NodeJoined(node=f"n{number}", url=ONE, engine=Engine(), hardware=Hardware()))
    with client:
        answers = [client.post("/heartbeat", content=body(node_id=name)) for name in ("a", "b", "c", "a")]
        assert client.post("/heartbeat", content=body(node_id="d", leaving=True)).status_code == 200
    assert [answer.status_code for answer in answers] == [200, 400, 400, 200]
    assert answers[1].json()["field"] == "node_id"
    assert f"{NODES_MAX} nodes already" in answers[1].json()["error"]
    assert len(core.view.fleet.nodes) == NODES_MAX
    assert caplog.text.count("was refused") == 1


def test_a_body_that_is_too_large_is_not_read(client: TestClient[Litestar]) -> None:
    with client:
        answer = client.post("/heartbeat", content=json.dumps({"node_id": "a", "x": "y" * (5 << 20)}).encode())
    assert answer.status_code == 413
