"""Where an engine is depends on who looks: what an agent calls "here" is somewhere else to the router."""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from herd.wire.heartbeat import Heartbeat

OLLAMA_PORT = 11434
HTTP_PORT = 80


def engine_url(beat: Heartbeat, source_ip: str) -> str:
    """Return the address of the engine as the router reaches it, without a trailing slash.

    A host that the agent names is right unless it means "here" (loopback, unspecified, or the agent's own LAN address,
    which the peer's agents put in place of loopback); "here" is then where the heartbeat came from.
    """
    reported = beat.reported_url or f"http://127.0.0.1:{OLLAMA_PORT}"
    parts = urlsplit(reported if "://" in reported else f"http://{reported}")
    host = parts.hostname or ""
    source = _address(source_ip)
    from_here = source is not None and source.is_loopback
    if not _means_here(host) and not (from_here and host == beat.lan_ip):
        where = host
    elif from_here:
        where = host if _is_loopback(host) else "localhost"
    else:
        where = str(source) if source is not None else beat.lan_ip or host
    port = parts.port or (HTTP_PORT if "://" in reported else OLLAMA_PORT)  # the rule of OLLAMA_HOST
    shown = f"[{where}]" if ":" in where else where
    return f"http://{shown}:{port}{parts.path.rstrip('/')}"


def means_one_of(url: str, hosts: Collection[str]) -> bool:
    """Tell whether the host of a URL is the machine whose names and addresses these are. Looks no name up."""
    host = urlsplit(url).hostname or ""
    address = _address(host)
    return _means_here(host) or (host if address is None else str(address)) in hosts


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _means_here(host: str) -> bool:
    address = _address(host)
    return _is_loopback(host) or (address is not None and address.is_unspecified)
