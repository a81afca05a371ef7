"""Router and agents find each other in either order, and a network that does not let them is no reason to stop."""

import asyncio
import gc
from uuid import uuid4

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from herd import __version__
from herd.node import discovery
from herd.node.discovery import announced, find_router

LOOPBACK = ("127.0.0.1",)


@pytest.fixture(name="kind")
def make_kind() -> str:
    """A service type of this test's own: others may run beside it."""
    return f"_h{uuid4().hex[:10]}._tcp.local."


async def test_an_agent_that_looks_first_finds_the_router_when_it_comes(kind: str) -> None:
    looking = asyncio.create_task(find_router(kind, 20, interfaces=LOOPBACK))
    await asyncio.sleep(0)
    async with announced(kind, "Fleet Manager Router", 11500, interfaces=LOOPBACK):
        assert await looking == "http://127.0.0.1:11500"


async def test_an_agent_finds_a_router_that_is_there_until_it_leaves(kind: str) -> None:
    async with announced(kind, "Fleet Manager Router", 11435, interfaces=LOOPBACK):
        assert await find_router(kind, 20, interfaces=LOOPBACK) == "http://127.0.0.1:11435"
    assert await find_router(kind, 0.5, interfaces=LOOPBACK) is None


async def test_the_announcement_bears_the_real_version(kind: str) -> None:
    info = AsyncServiceInfo(kind, f"Fleet Manager Router.{kind}")
    async with announced(kind, "Fleet Manager Router", 11435, interfaces=LOOPBACK):
        network = AsyncZeroconf(interfaces=list(LOOPBACK))
        try:
            for _ in range(10):
                if await info.async_request(network.zeroconf, 2000):
                    break
        finally:
            await network.async_close()
    assert info.properties == {b"version": __version__.encode()}
    assert info.parsed_addresses() == ["127.0.0.1"]


async def test_a_service_type_that_makes_no_sense_does_not_stop_the_router(caplog: pytest.LogCaptureFixture) -> None:
    async with announced("nonsense", "Fleet Manager Router", 11435, interfaces=LOOPBACK):
        for _ in range(500):
            if "cannot announce" in caplog.text:
                break
            await asyncio.sleep(0.01)
    assert "--router-url" in caplog.text


# zeroconf 0.154 leaves its first socket to the garbage collector when the second cannot be had.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_a_machine_without_that_address_finds_and_announces_nothing(kind: str) -> None:
    nowhere = ("192.0.2.77",)
    assert await find_router(kind, 0.5, interfaces=nowhere) is None
    async with announced(kind, "Fleet Manager Router", 11435, interfaces=nowhere):
        await asyncio.sleep(0)
    gc.collect()


async def test_a_router_whose_address_changes_announces_the_new_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "ADDRESS_LOOK_S", 0.05)
    interfaces = ["127.0.0.1"]
    async with announced(kind, "Fleet Manager Router", 11435, interfaces=interfaces):
        assert await find_router(kind, 20, interfaces=interfaces) == "http://127.0.0.1:11435"
        interfaces[0] = "127.0.0.3"  # what a new lease does
        async with asyncio.timeout(20):
            while await find_router(kind, 2, interfaces=LOOPBACK) != "http://127.0.0.3:11435":
                pass
