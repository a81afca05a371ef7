"""Fixtures that every kind of test shares."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio: the router does."""
    return "asyncio"
