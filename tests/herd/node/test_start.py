"""The agent as a program: named well, alone, light, and stopped by signals."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from herd import __version__
from herd.cli.herd_node import main
from herd.errors import SettingsError, StartupError
from herd.node import address
from herd.node.engines import fetch
from herd.node.start import alone, completed, own_name
from herd.settings import NodeSettings
from tests.herd.node.test_agent import FakeRouter
from tests.herd.node.test_ollama_engine import FakeOllama
from tests.herd.node.web import served


def test_addresses_are_taken_as_people_write_them() -> None:
    settings = completed(NodeSettings(node_id="ash", router_url="10.0.0.2", ollama_host="0.0.0.0:11500"))
    assert settings.router_url == "http://10.0.0.2:11435"
    assert settings.ollama_host == "http://127.0.0.1:11500"


@pytest.mark.parametrize("given", ["ftp://x", "http://", "http://x:99999", "http://x/?q=1", "http://[::1"])
def test_an_address_that_makes_no_sense_is_named(given: str) -> None:
    with pytest.raises(SettingsError, match="FLEET_NODE_ROUTER_URL"):
        completed(NodeSettings(node_id="ash", router_url=given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://127.0.0.1:11434", "plain http"),
        ("http://user:secret@127.0.0.1", "password"),
        ("http://ünï.local", "ASCII"),
        ("http://x:0", "no address"),
        ("x y", "spaces"),
    ],
)
def test_an_engine_that_the_router_could_not_reach_is_refused_at_the_start(given: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        completed(NodeSettings(node_id="ash", ollama_host=given))
    assert "FLEET_NODE_OLLAMA_HOST" in caught.value.message
    assert "secret" not in caught.value.message


def test_a_router_behind_a_proxy_that_speaks_tls_can_be_named() -> None:
    assert completed(NodeSettings(router_url="https://herd.example")).router_url == "https://herd.example:443"


@pytest.mark.parametrize("name", ["a:b", "a b", "a" * 65, "ä"])
def test_a_name_that_the_router_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(SettingsError, match="--node-id"):
        completed(NodeSettings(node_id=name))


def test_a_machine_has_a_name_of_its_own() -> None:
    assert completed(NodeSettings()).node_id == own_name() != ""


def test_this_machine_knows_itself() -> None:
    assert address.is_this_machine("127.0.0.1")
    assert address.is_this_machine("localhost")
    assert address.is_this_machine(address.lan_address())
    assert not address.is_this_machine("192.0.2.200")
    assert not address.is_this_machine("no-such-host.invalid")
    assert address.address_towards("127.0.0.1") == "127.0.0.1"


def test_two_agents_of_one_name_do_not_run_on_one_machine(tmp_path: Path) -> None:
    settings = NodeSettings(node_id="ash", data_dir=str(tmp_path))
    with alone(settings):
        with pytest.raises(StartupError, match="ash runs on this machine already"), alone(settings):
            raise AssertionError("both run")
        with alone(NodeSettings(node_id="elm", data_dir=str(tmp_path))):
            pass
    with alone(settings):
        pass


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StartupError, match="cannot write to"),
        alone(NodeSettings(node_id="ash", data_dir=str(tmp_path / "file" / "home"))),
    ):
        raise AssertionError("it began")


def test_help_shows_every_flag_and_an_example() -> None:
    shown = CliRunner().invoke(main, ["--help"])
    assert shown.exit_code == 0
    for flag in (
        "--node-id",
        "--router-url",
        "--ollama-host",
        "--engine",
        "--log-level",
        "--version",
        "herd-node --router",
    ):
        assert flag in shown.output


def test_the_version_is_the_real_one() -> None:
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


def test_wrong_usage_is_one_line_and_an_exit_code() -> None:
    shown = CliRunner().invoke(main, ["--node-id", "a:b"])
    assert shown.exit_code == 2
    assert "a:b" in shown.output


def test_the_agent_loads_no_web_framework_and_no_database() -> None:
    heavy = ("litestar", "uvicorn", "sqlalchemy", "alembic", "polars", "plotly", "projections.fleet", "herd.app")
    code = f"import sys, herd.cli.herd_node, herd.node.start; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@asynccontextmanager
async def program(home: Path, **settings: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run the real program."""
    environment: Mapping[str, str] = {
        **os.environ,
        "FLEET_ENV_FILE": str(home / "no-such-file"),
        "FLEET_NODE_DATA_DIR": str(home),
        "FLEET_NODE_NODE_ID": "ash",
        "FLEET_NODE_HEARTBEAT_INTERVAL": "0.05",
        **{f"FLEET_NODE_{name.upper()}": value for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from herd.cli.herd_node import main; main()", env=environment,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_sigterm_drains_and_a_second_one_stops_at_once(tmp_path: Path) -> None:
    router = FakeRouter()
    async with (
        served(router.handle) as url,
        served(FakeOllama().handle) as ollama,
        program(tmp_path, router_url=url, ollama_host=ollama) as process,
    ):
        beat = await router.next()
        assert beat.engine is not None
        assert (beat.engine.name, beat.engine.version) == ("Ollama", "0.9.3")
        router.answer = router.answer | {"in_flight": 1}
        process.send_signal(signal.SIGTERM)
        await router.until(lambda beat: beat.draining)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 1
    assert not any(beat.leaving for beat in router.beats)
    assert (tmp_path / "logs" / "herd-node.jsonl").exists()


async def test_ctrl_c_leaves_in_good_order(tmp_path: Path) -> None:
    router = FakeRouter()
    async with (
        served(router.handle) as url,
        served(FakeOllama().handle) as ollama,
        program(tmp_path, router_url=url, ollama_host=ollama) as process,
    ):
        await router.next()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert router.beats[-1].leaving


@pytest.fixture(scope="session", name="home")
def fetched_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the real built-in engine."""
    home = tmp_path_factory.mktemp("engine")
    try:
        asyncio.run(fetch.library(home))
        asyncio.run(fetch.weights(home))
    except StartupError as error:
        pytest.skip(f"the built-in engine cannot be had here: {error.message}")
    return home


@pytest.mark.engine
@pytest.mark.timeout(300)
async def test_a_machine_without_ollama_answers_with_the_built_in_engine(home: Path) -> None:
    router = FakeRouter()
    async with (
        served(router.handle) as url,
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
        program(home, router_url=url, ollama_host="127.0.0.1:9", engine="auto") as process,
    ):
        beat = await router.until(lambda beat: beat.engine is not None and beat.engine.up)
        assert beat.engine is not None
        assert beat.engine.dialect == "openai"
        assert beat.engine.models is not None
        [model] = beat.engine.models
        question = {
            "model": model.name,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 8,
            "temperature": 0,
        }
        answer = await client.post(f"{beat.engine.url}/v1/chat/completions", json=question)
        assert answer.status_code == 200
        assert answer.json()["model"] == "smollm2:135m"
        assert answer.json()["usage"]["completion_tokens"] == 8
        assert answer.json()["choices"][0]["message"]["content"].strip()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{beat.engine.url}/health")


@pytest.mark.engine
@pytest.mark.timeout(300)
async def test_the_built_in_engine_does_not_outlive_a_killed_agent(home: Path) -> None:
    router = FakeRouter()
    async with (
        served(router.handle) as url,
        httpx.AsyncClient(trust_env=False) as client,
        program(home, router_url=url, engine="embedded") as process,
    ):
        beat = await router.until(lambda beat: beat.engine is not None and beat.engine.up)
        assert beat.engine is not None
        process.kill()
        await process.wait()
        await gone(client, f"{beat.engine.url}/health")


async def gone(client: httpx.AsyncClient, url: str) -> None:
    """Return when nobody answers there any more."""
    for _ in range(400):
        try:
            await client.get(url)
        except httpx.TransportError:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it still answers")
