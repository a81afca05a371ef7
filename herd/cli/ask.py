"""Commands see the router as any client does: over HTTP, with a deadline, and a word on what to do if it is away."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from herd.cli.program import Unreachable

TIMEOUT_S = 10.0


def ask(url: str, path: str, params: Mapping[str, Any] | None = None) -> bytes:
    """Return the body of a GET. Raises `Unreachable` when there is no router, or it does not answer 200."""
    from http.client import HTTPException  # noqa: PLC0415 - see `got`

    query = urlencode({name: value for name, value in (params or {}).items() if value is not None})
    try:
        status, body = got(url, f"{path}?{query}" if query else path)
    except (OSError, ValueError, HTTPException) as error:
        raise Unreachable(
            f"cannot reach the router at {url}: {why(error)}",
            hint="Start it with `herd`, or say where it runs with --url.",
        ) from error
    if status != 200:
        raise not_herd(url, f"answered {status} to {path}")
    return body


def got(url: str, target: str) -> tuple[int, bytes]:
    """Return the status and the body that a GET of a target below an address is answered with.

    Raises `OSError`, `ValueError` and `HTTPException`.
    """
    # The standard library's client suffices and is loaded six times as fast as the router's; --help needs neither.
    from http.client import HTTPConnection, HTTPSConnection  # noqa: PLC0415

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("that is no http address")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}{target}", headers={"Accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def why(error: Exception) -> str:
    """Return what went wrong in as few words as say it."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return said or str(error) or type(error).__name__


def not_herd(url: str, why: str) -> Unreachable:
    """Return the error for an address where somebody answers, but not as a Herd router does."""
    return Unreachable(f"{url} {why}", hint="Is this a Herd router of this release? Say where it runs with --url.")
