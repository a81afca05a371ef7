"""A router that passes on a client's Host or Origin is turned away by real nodes, so the fake turns it away as well."""

import ipaddress
import socket
from urllib.parse import urlsplit

from tests.fakes.connection import Request

_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")


def host_allowed(request: Request) -> bool:
    """Whether a server bound to loopback was called by a local name (else: a DNS rebinding attack)."""
    name = (urlsplit(f"//{request.header('host') or ''}").hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(
            (".localhost", ".local", ".internal")
        )
    return address.is_loopback or address.is_private or address.is_unspecified


def foreign_origin(request: Request) -> str | None:
    """The Origin header, unless it is absent or names this server itself."""
    origin = request.header("origin")
    return None if origin is None or urlsplit(origin).netloc == request.header("host") else origin


def origin_allowed(origin: str) -> bool:
    """Whether pages from there may use the server, by Ollama's default list."""
    parts = urlsplit(origin)
    local = parts.scheme in ("http", "https") and parts.hostname in ("localhost", "127.0.0.1", "0.0.0.0")
    return local or parts.scheme in _APP_SCHEMES
