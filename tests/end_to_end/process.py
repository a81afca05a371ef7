"""A router as its own process, as users run it: it can be killed, starved of disk, and started twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class RouterProcess:
    """A started router."""

    process: subprocess.Popen[str]
    url: str
    http: httpx.Client
    """A client of it, for any thread."""

    def kill(self) -> None:
        """End it as a power cut would, as far as a process can."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def command(home: Path, port: int, *flags: str) -> list[str]:
    """Return the command line of a router."""
    base = [sys.executable, "-m", "herd.cli.herd", "serve", "--port", str(port)]
    return [*base, "--data-dir", str(home), *flags]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without anybody's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    quiet = {"FLEET_HOST": "127.0.0.1", "FLEET_MDNS": "false", "FLEET_ENV_FILE": "/nonexistent/env"}
    return clean | quiet | dict(extra or {})


@contextmanager
def router(home: Path, port: int, *, prefix: tuple[str, ...] = (), **settings: str) -> Generator[RouterProcess]:
    """Start a router and wait until it answers. `settings` are FLEET_ variables without their prefix."""
    extra = {f"FLEET_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [*prefix, *command(home, port)],
        env=environment(extra),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        # Certificates that nobody needs here take 40 ms to load, and a client of their own for each request as well.
        with httpx.Client(base_url=url, timeout=20.0, verify=False, trust_env=False) as http:
            found = RouterProcess(process, url, http)
            _wait(found)
            yield found
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _wait(found: RouterProcess, *, timeout_s: float = 30.0) -> None:
    over = time.monotonic() + timeout_s
    while True:
        try:
            found.http.get("/healthz", timeout=5).raise_for_status()
        except httpx.TransportError:
            assert found.process.poll() is None, found.process.communicate()[1]
            assert time.monotonic() < over, "the router does not answer"
            time.sleep(0.05)
        else:
            return
