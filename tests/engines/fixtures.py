"""A pytest plugin: real engines for the tests that ask for them, and a loud word where they could not be had.

Skipping in silence would let every test of the real thing rot. Set HERD_REQUIRE_ENGINES=1 where an absent engine is a
failure (CI). The first use of an engine on a machine downloads and compiles for about half a minute.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn

import pytest

from tests.engines.get_ollama import EngineUnavailable
from tests.engines.real_ollama import RealOllama

ENGINE_TIMEOUT_S = 300
"""For tests that may be the first to need an engine: `pytest.mark.timeout(ENGINE_TIMEOUT_S)`."""

NO_ENGINE = "NO ENGINE: "
"""How the reason of such a skip begins."""


@pytest.fixture(scope="session")
def ollama_093() -> Iterator[RealOllama]:
    """A running Ollama 0.9.3 with one slot for each model, shared by the tests of a worker."""
    yield from _running("0.9.3")


@pytest.fixture(scope="session")
def ollama_054() -> Iterator[RealOllama]:
    """A running Ollama 0.5.4, for fleets of mixed age; as `ollama_093` otherwise."""
    yield from _running("0.5.4")


def unavailable(error: EngineUnavailable) -> NoReturn:
    """Skip the test, or fail it where engines are required."""
    if os.environ.get("HERD_REQUIRE_ENGINES") == "1":
        pytest.fail(f"{NO_ENGINE}{error}", pytrace=False)
    pytest.skip(f"{NO_ENGINE}{error}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the very end which tests met no real engine, and why."""
    reports: list[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple)]
    missed = [reason.partition(NO_ENGINE)[2] for reason in reasons if NO_ENGINE in reason]
    if missed:
        terminalreporter.section("REAL ENGINES WERE NOT TESTED", red=True, bold=True)
        for reason in sorted(set(missed)):
            terminalreporter.write_line(f"{missed.count(reason)} tests skipped: {reason}", red=True)


def _running(version: str) -> Iterator[RealOllama]:
    with ExitStack() as stack:
        try:
            node = stack.enter_context(RealOllama(version))
        except EngineUnavailable as error:
            unavailable(error)
        yield node
