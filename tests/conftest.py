"""Fixtures and settings that every kind of test shares."""

import pytest
from hypothesis import settings

pytest_plugins = ["tests.engines.fixtures"]

# A deadline per example measures the machine, not the code.
settings.register_profile("herd", deadline=None)
settings.load_profile("herd")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio: the router does."""
    return "asyncio"
