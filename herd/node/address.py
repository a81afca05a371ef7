"""A machine has several addresses, and which one another machine must use depends on where that one is."""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

import psutil

from herd.errors import SettingsError

#: Nothing is sent there: the kernel is only asked which of our addresses it would use.
SOMEWHERE = "10.255.255.255"

LOOPBACK = "127.0.0.1"


def base_url(text: str, setting: str, port_default: int, *, tls: bool = False) -> str:
    """Return `http://host:port` of an address as people write it: `host`, `host:port` or a URL, https:// too if `tls`.

    An address to listen on (0.0.0.0) becomes the one to connect to. Raises `SettingsError` that names the setting.
    """
    hint = "Use http://host:port."
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{setting} is {text!r}: {error}", hint=hint) from error
    if parts.username is not None or parts.password is not None:  # not repeated: it would stand in a log
        raise SettingsError(f"{setting} holds a user name or a password, which is sent nowhere", hint=hint)
    if parts.scheme == "https" and not tls:
        raise SettingsError(f"{setting} is {text!r}, but the router speaks plain http to engines", hint=hint)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise SettingsError(f"{setting} is {text!r}, which is no address of a server", hint=hint)
    if not text.isascii() or re.search(r"[\s\\]", text):
        raise SettingsError(
            f"{setting} is {text!r}: spaces, backslashes and letters beyond ASCII do not work", hint=hint
        )
    if port is None:
        port = port_default if "://" not in text else {"http": 80, "https": 443}[parts.scheme]
    host = LOOPBACK if parts.hostname in ("0.0.0.0", "::") else parts.hostname
    return f"{parts.scheme}://{bracketed(host)}:{port}{parts.path.rstrip('/')}"


def bracketed(host: str) -> str:
    """Return a host as URLs write it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def host_of(url: str) -> str:
    """Return the host of a URL."""
    return urlsplit(url).hostname or ""


def port_of(url: str) -> int:
    """Return the port of a URL made by `base_url`."""
    return urlsplit(url).port or 80


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine by any other's standard."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_this_machine(host: str) -> bool:
    """Tell whether a host is one of our own addresses. May block on a name server."""
    if is_loopback(host):
        return True
    ours = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    try:
        theirs = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(theirs) and theirs <= ours


def lan_address() -> str:
    """Return the IPv4 address at which this machine is known to its network; loopback where it has none."""
    routed = address_towards(SOMEWHERE)
    if not is_loopback(routed):
        return routed
    # A network that leads nowhere else has no default route to be asked about.
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    addresses = [
        each.address
        for name, each_of in psutil.net_if_addrs().items()
        for each in each_of
        if name in up and each.family == socket.AF_INET and not is_loopback(each.address)
    ]
    return addresses[0] if addresses else LOOPBACK


def address_towards(host: str) -> str:
    """Return our IPv4 address as a host sees it, loopback where no way leads there. May block on a name server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect((host, 9))
            return str(asked.getsockname()[0])
        except OSError:
            return LOOPBACK


def free_port(host: str) -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
