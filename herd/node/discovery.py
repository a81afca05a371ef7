"""Addresses on a home network change with every lease, so routers announce theirs, and agents look again when lost."""

import asyncio
import logging
import platform
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import zeroconf
from zeroconf import InterfaceChoice, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from herd import __version__
from herd.node.address import bracketed, lan_address

logger = logging.getLogger(__name__)

#: How long a router that was heard of may take to say its address, milliseconds.
RESOLVE_TIMEOUT_MS = 3000

#: How often the router looks whether the network gave it another address, seconds.
ADDRESS_LOOK_S = 30.0


async def find_router(service_type: str, timeout_s: float, *, interfaces: Sequence[str] = ()) -> str | None:
    """Return the base URL of the first router that answers within the time, None where none does.

    A network without multicast is one where nobody answers. `interfaces` are addresses to look at; default: all.
    """
    try:
        network = _network(interfaces)
    except OSError as error:
        logger.debug("cannot look for a router: %s", error)
        return None
    found: asyncio.Queue[str] = asyncio.Queue(maxsize=100)

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        del zeroconf, service_type
        if state_change is not ServiceStateChange.Removed and not found.full():
            found.put_nowait(name)

    try:
        AsyncServiceBrowser(network.zeroconf, service_type, handlers=[heard])
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    url = await _resolve(network, service_type, await found.get())
                    if url is not None:
                        return url
    except (zeroconf.Error, OSError) as error:
        logger.warning("cannot look for a router of type %s: %s", service_type, error)
    finally:
        await network.async_close()
    return None


async def _resolve(network: AsyncZeroconf, service_type: str, name: str) -> str | None:
    info = AsyncServiceInfo(service_type, name)
    if not await info.async_request(network.zeroconf, RESOLVE_TIMEOUT_MS) or info.port is None:
        return None
    addresses = info.parsed_addresses(IPVersion.V4Only)
    return f"http://{bracketed(addresses[0])}:{info.port}" if addresses else None


@asynccontextmanager
async def announced(
    service_type: str, service_name: str, port: int, *, interfaces: Sequence[str] = ()
) -> AsyncGenerator[None]:
    """Announce the router while the body runs, under its present address whenever that changes.

    The body does not wait for it, and runs all the same where the network does not let it: agents can be told the
    address. `interfaces` are addresses to announce on; default: all.
    """
    task = asyncio.create_task(_announce(service_type, service_name, port, interfaces), name="mDNS announcement")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def _announce(service_type: str, service_name: str, port: int, interfaces: Sequence[str]) -> None:
    while True:
        address = _announced_address(interfaces)
        network: AsyncZeroconf | None = None
        try:
            network = await _registered(_described(service_type, service_name, port, address), interfaces)
        except (zeroconf.Error, OSError) as error:
            logger.warning("cannot announce the router by mDNS; give agents --router-url instead: %s", error)
        try:
            await _moved_from(address, interfaces)
        finally:
            if network is not None:
                await _withdraw(network)


async def _registered(info: AsyncServiceInfo, interfaces: Sequence[str]) -> AsyncZeroconf:
    network = _network(interfaces)
    try:
        # The name may be held by another router, or by one that was killed a moment ago. An awaitable in an awaitable,
        # of which only the outer one has a type.
        register: Callable[..., Awaitable[Awaitable[None]]] = network.async_register_service  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        await (await register(info, allow_name_change=True))
    except BaseException:
        await network.async_close()
        raise
    logger.info("announced as %s at %s:%s", info.name, info.parsed_addresses()[0], info.port)
    return network


async def _moved_from(address: str, interfaces: Sequence[str]) -> None:
    """Return when this machine has another address. Sockets are bound to the old one, so no update would do."""
    while True:
        await asyncio.sleep(ADDRESS_LOOK_S)
        now = _announced_address(interfaces)
        if now != address:
            logger.info("the address of this machine was %s and is now %s; announcing again", address, now)
            return


async def _withdraw(network: AsyncZeroconf) -> None:
    try:
        await network.async_unregister_all_services()
        await network.async_close()
    except (zeroconf.Error, OSError) as error:
        logger.debug("the announcement could not be withdrawn: %s", error)


def _announced_address(interfaces: Sequence[str]) -> str:
    return interfaces[0] if interfaces else lan_address()


def _described(service_type: str, service_name: str, port: int, address: str) -> AsyncServiceInfo:
    # Not the machine's own name.local: that belongs to its own responder, with all its addresses.
    machine = re.sub(r"[^A-Za-z0-9-]+", "-", platform.node().split(".")[0]) or "router"
    return AsyncServiceInfo(
        service_type,
        f"{service_name}.{service_type}",
        parsed_addresses=[address],
        port=port,
        properties={"version": __version__},
        server=f"fleet-manager-{machine}-{port}.local.",
    )


def _network(interfaces: Sequence[str]) -> AsyncZeroconf:
    # The default leaves loopback out, where a router and an agent on one machine without a network would meet.
    chosen: Any = list(interfaces) or InterfaceChoice.All
    return AsyncZeroconf(interfaces=chosen, ip_version=IPVersion.V4Only)
