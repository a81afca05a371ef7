"""Commands see the router as any client does: over HTTP, with a deadline, and a word on what to do if it is away."""

from collections.abc import Mapping
from typing import Any

from herd.cli.program import Unreachable

TIMEOUT_S = 10.0


def ask(url: str, path: str, params: Mapping[str, Any] | None = None) -> bytes:
    """Return the body of a GET. Raises `Unreachable` when there is no router, or it does not answer 200."""
    import httpx  # noqa: PLC0415 - costs 0.2 s, which `herd --help` need not wait for

    given = {name: value for name, value in (params or {}).items() if value is not None}
    try:
        answer = httpx.get(f"{url}{path}", params=given, timeout=TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(
            f"cannot reach the router at {url}: {error or type(error).__name__}",
            hint="Start it with `herd`, or say where it runs with --url.",
        ) from error
    if answer.status_code != 200:
        raise not_herd(url, f"answered {answer.status_code} to {path}")
    return answer.content


def not_herd(url: str, why: str) -> Unreachable:
    """Return the error for an address where somebody answers, but not as a Herd router does."""
    return Unreachable(f"{url} {why}", hint="Is this a Herd router of this release? Say where it runs with --url.")
