"""Ollama where it answers, else what we bring ourselves, and never silently."""

import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal, Protocol

import httpx
import pytest

from herd.errors import StartupError
from herd.node.engines.choice import Choice
from herd.node.engines.embedded import Embedded
from herd.node.engines.ollama import Ollama
from tests.herd.node.test_embedded import command
from tests.herd.node.test_ollama_engine import FakeOllama
from tests.herd.node.web import served

Wanted = Literal["auto", "ollama", "embedded"]
NOWHERE = "http://127.0.0.1:9"


class Choose(Protocol):
    """Makes a choice for a test."""

    def __call__(self, wanted: Wanted, url: str, *, installed: bool = False, no_network: bool = False) -> Choice: ...


@pytest.fixture(name="choice")
async def make_choice(tmp_path: Path) -> AsyncGenerator[Choose]:
    async with httpx.AsyncClient(trust_env=False) as client:

        def choose(wanted: Wanted, url: str, *, installed: bool = False, no_network: bool = False) -> Choice:
            async def embedded() -> Embedded:
                if no_network:
                    raise StartupError("cannot fetch xllamacpp: no route", hint="Check the network.")
                return Embedded(tmp_path, client, command=command, environment={}, jitter=lambda: 0.0)

            ollama = Ollama(url, client, processes=list, environment={})
            return Choice(wanted, ollama, embedded, installed=lambda: installed, boot_wait_s=0.0)

        yield choose


async def test_an_ollama_that_answers_is_used(choice: Choose) -> None:
    async with served(FakeOllama().handle) as url:
        assert isinstance(await choice("auto", url, no_network=True).first(), Ollama)


async def test_without_ollama_the_built_in_engine_serves_until_ollama_answers(choice: Choose) -> None:
    async with served(FakeOllama().handle) as url:
        port = int(url.rpartition(":")[2])
    chosen = choice("auto", url)
    engine = await chosen.first()
    assert isinstance(engine, Embedded)
    assert await chosen.again(engine) is engine
    async with served(FakeOllama().handle, port):
        then = await chosen.again(engine)
    assert isinstance(then, Ollama)
    assert not (await engine.report()).up
    assert await chosen.again(then) is then


async def test_who_insists_on_the_built_in_engine_keeps_it(choice: Choose) -> None:
    async with served(FakeOllama().handle) as url:
        chosen = choice("embedded", url)
        engine = await chosen.first()
        assert isinstance(engine, Embedded)
        assert await chosen.again(engine) is engine
        await engine.close()


async def test_who_insists_on_ollama_gets_it_dead_or_alive(choice: Choose) -> None:
    chosen = choice("ollama", NOWHERE, no_network=True)
    engine = await chosen.first()
    assert isinstance(engine, Ollama)
    assert await chosen.again(engine) is engine


async def test_without_ollama_and_network_the_agent_goes_on_and_says_why(
    choice: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(await choice("auto", NOWHERE, no_network=True).first(), Ollama)
    assert "cannot fetch xllamacpp: no route. Check the network." in caplog.text


async def test_who_insists_on_what_cannot_be_had_is_told(choice: Choose) -> None:
    with pytest.raises(StartupError, match="cannot fetch"):
        await choice("embedded", NOWHERE, no_network=True).first()


async def test_an_installed_ollama_that_does_not_run_is_mentioned(
    choice: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = await choice("auto", NOWHERE, installed=True).first()
    await engine.close()
    assert "ollama serve" in caplog.text
