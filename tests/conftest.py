"""Fixtures and settings that every kind of test shares."""

import signal

import pytest
from hypothesis import settings

pytest_plugins = ["tests.engines.fixtures"]

# A deadline per example measures the machine, not the code. `make check` shall stay under a minute, so it asks for few
# examples where a test does not say how many; `make test` asks again for more.
settings.register_profile("quick", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.load_profile("quick")


def pytest_configure() -> None:
    """Let commands under test hear Ctrl-C: a shell that runs tests in the background makes all it starts deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio: the router does."""
    return "asyncio"
