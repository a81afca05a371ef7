"""What the shared engine fixtures cannot show: private model folders, pulls, and a loud skip."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.engines.fixtures import ENGINE_TIMEOUT_S, unavailable
from tests.engines.get_ollama import EngineUnavailable, once
from tests.engines.mini_registry import MiniRegistry
from tests.engines.real_ollama import CHAT_MODEL, RealOllama, get_models

ENGINE_MARKS = (pytest.mark.engine, pytest.mark.timeout(ENGINE_TIMEOUT_S))


@pytest.fixture(params=[pytest.param(version, marks=ENGINE_MARKS) for version in ("0.9.3", "0.5.4")])
def version(request: pytest.FixtureRequest) -> str:
    try:
        get_models(request.param)
    except EngineUnavailable as error:
        unavailable(error)
    return request.param


def test_a_real_pull_shows_progress_and_brings_the_model(version: str) -> None:
    with (
        RealOllama(version, own_models=True) as node,
        MiniRegistry(get_models(version)) as registry,
        httpx.Client(base_url=node.url, timeout=60) as http,
    ):
        for model in http.get("/api/tags").json()["models"]:
            http.request("DELETE", "/api/delete", json={"model": model["name"]}).raise_for_status()
        assert http.get("/api/tags").json() == {"models": []}

        pulled = http.post("/api/pull", json={"model": registry.name_of(CHAT_MODEL), "insecure": True})
        lines = [msgspec.json.decode(line) for line in pulled.content.splitlines()]
        (name,) = [model["name"] for model in http.get("/api/tags").json()["models"]]
        asked = {"model": name, "prompt": "hi", "stream": False, "options": {"num_predict": 2}}
        answer = http.post("/api/generate", json=asked)

        missing = http.post("/api/pull", json={"model": registry.name_of("nope"), "insecure": True})

    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == {"status": "success"}
    assert any(line.get("completed", 0) == line.get("total") for line in lines if "digest" in line)
    assert answer.json()["eval_count"] == 2
    assert missing.status_code == 200
    assert msgspec.json.decode(missing.content.splitlines()[-1]).keys() == {"error"}
    assert any((get_models(version) / "blobs").iterdir())


async def test_a_real_node_with_a_full_queue_says_busy(version: str) -> None:
    question = {"model": CHAT_MODEL, "prompt": "hi", "stream": False, "options": {"num_predict": 2}}
    with RealOllama(version, environment={"OLLAMA_MAX_QUEUE": "1"}) as node:
        async with httpx.AsyncClient(base_url=node.url, timeout=60, verify=False) as http:
            answers = await asyncio.gather(*(http.post("/api/generate", json=question) for _ in range(6)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 6
    assert {answer.status_code for answer in refused} == {503}
    assert {answer.json()["error"] for answer in refused} == {
        "server busy, please try again.  maximum pending requests exceeded"
    }


def test_a_stopped_engine_leaves_no_process(version: str) -> None:
    with RealOllama(version) as node:
        httpx.post(f"{node.url}/api/generate", json={"model": CHAT_MODEL}, timeout=60).raise_for_status()
        children = subprocess.run(["ps", "-eo", "sid,pid"], capture_output=True, text=True, check=True).stdout
        assert len([line for line in children.splitlines() if line.split()[0] == str(node.process_id)]) == 2
    left = subprocess.run(["ps", "-eo", "sid,pid,stat"], capture_output=True, text=True, check=True).stdout
    assert [line for line in left.splitlines() if line.split()[0] == str(node.process_id) and " Z" not in line] == []


def test_what_cannot_be_made_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(EngineUnavailable, match="the disk is full"):
        once("thing", fail)
    made = once("thing", lambda folder: (folder / "whole").touch())
    assert [file.name for file in made.iterdir()] == ["whole"]
    assert once("thing", fail) == made


@pytest.mark.parametrize(
    ("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)], ids=["skip", "fail"]
)
def test_an_absent_engine_skips_or_fails_as_asked(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("HERD_REQUIRE_ENGINES", required)
    with pytest.raises(outcome, match="NO ENGINE: no wheel"):
        unavailable(EngineUnavailable("no wheel"))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_absent_engine_is_named_at_the_end_of_the_run(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_one.py").write_text(
        "from tests.engines.fixtures import unavailable\n"
        "from tests.engines.get_ollama import EngineUnavailable\n"
        "def test_one():\n"
        "    unavailable(EngineUnavailable('no wheel for Mars'))\n"
    )
    root = Path(__file__).parents[2]
    plugins = ["-p", "tests.engines.fixtures", "-p", "xdist", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-n", workers, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert "REAL ENGINES WERE NOT TESTED" in run.stdout
    assert "1 tests skipped: no wheel for Mars" in run.stdout
