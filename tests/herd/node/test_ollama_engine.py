"""An Ollama of any age is described as fully as it lets itself be."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from herd.node.engines.ollama import Ollama, Shown, facts_of, listens_on, models_dir, parallel_of
from herd.wire import heartbeat as wire
from tests.herd.node.web import served


class FakeOllama:
    """The service routes of Ollama, with switches."""

    def __init__(self) -> None:
        self.version = "0.9.3"
        self.tags: list[dict[str, Any]] = [tag("llama3.2:3b", "d1"), tag("nomic-embed-text:latest", "d2")]
        self.running: list[dict[str, Any]] = []
        self.shown: dict[str, dict[str, Any]] = {
            "llama3.2:3b": {
                "capabilities": ["completion", "tools"],
                "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
            },
            "nomic-embed-text:latest": {
                "model_info": {
                    "general.architecture": "nomic-bert",
                    "nomic-bert.context_length": 2048,
                    "nomic-bert.embedding_length": 768,
                    "nomic-bert.pooling_type": 1,
                }
            },
        }
        self.broken: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.at_once = 0
        self.at_once_max = 0
        self.gather = 1
        self.gathered = asyncio.Event()

    async def handle(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.asked[path] += 1
        if path in self.broken:
            return 500, {"error": "broken"}
        match path:
            case "/api/version":
                return 200, {"version": self.version}
            case "/api/tags":
                return 200, {"models": self.tags}
            case "/api/ps":
                return 200, {"models": self.running}
            case "/api/show":
                self.at_once += 1
                self.at_once_max = max(self.at_once_max, self.at_once)
                if self.at_once >= self.gather:
                    self.gathered.set()
                await self.gathered.wait()
                await asyncio.sleep(0.02 if self.gather > 1 else 0)  # whoever else would come has time to
                self.at_once -= 1
                name = next((name for name in self.shown if name.encode() in body), None)
                return (404, {"error": "not found"}) if name is None else (200, self.shown[name])
            case _:
                return 404, b"404 page not found"


def tag(name: str, digest: str, **more: Any) -> dict[str, Any]:
    details = {"format": "gguf", "family": "llama", "families": None, "parameter_size": "3.2B"}
    return {"name": name, "model": name, "size": 2_000_000_000, "digest": digest, "details": details, **more}


@asynccontextmanager
async def watching(
    fake: FakeOllama, *environments: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> AsyncGenerator[Ollama]:
    async with served(fake.handle) as url, httpx.AsyncClient(trust_env=False) as client:
        port = url.rpartition(":")[2]
        processes = [{**each, "OLLAMA_HOST": each.get("OLLAMA_HOST", f"127.0.0.1:{port}")} for each in environments]
        yield Ollama(url, client, processes=lambda: processes, environment=environment or {})


def by_name(report: wire.Engine) -> dict[str, wire.Model]:
    assert report.models is not None
    return {model.name: model for model in report.models}


async def test_models_are_reported_with_what_they_can_do() -> None:
    fake = FakeOllama()
    fake.running = [
        {"name": "llama3.2:3b", "size": 5, "size_vram": 4, "digest": "d1", "expires_at": "2026-01-01T00:00:00Z",
         "context_length": 8192, "details": {"quantization_level": "Q4_K_M"}}
    ]  # fmt: skip
    async with watching(fake) as ollama:
        report = await ollama.report()
    assert (report.up, report.version, report.dialect, report.name) == (True, "0.9.3", "ollama", "Ollama")
    chat, embed = by_name(report)["llama3.2:3b"], by_name(report)["nomic-embed-text:latest"]
    assert (chat.capabilities, chat.context_length, chat.size_bytes) == (("completion", "tools"), 131072, 2_000_000_000)
    assert (embed.capabilities, embed.context_length, embed.embedding_length) == (("embedding",), 2048, 768)
    assert report.loaded == (
        wire.Loaded(
            name="llama3.2:3b", size_bytes=5, size_vram_bytes=4, digest="d1", expires_at="2026-01-01T00:00:00Z",
            context_length=8192, quantization="Q4_K_M",
        ),
    )  # fmt: skip


async def test_each_digest_is_looked_at_once() -> None:
    fake = FakeOllama()
    async with watching(fake) as ollama:
        await ollama.report()
        await ollama.report()
        assert fake.asked["/api/show"] == 2
        fake.tags = [tag("llama3.2:3b", "d1-updated")]
        await ollama.report()
    assert fake.asked["/api/show"] == 3


async def test_few_are_looked_at_at_once() -> None:
    fake = FakeOllama()
    fake.gather = 4
    fake.tags = [tag(f"m{number}:latest", f"d{number}") for number in range(40)]
    fake.shown = {f"m{number}:latest": {"capabilities": ["completion"]} for number in range(40)}
    async with watching(fake) as ollama:
        await ollama.report()
    assert fake.at_once_max == 4


async def test_a_list_that_tells_everything_needs_no_further_question() -> None:
    fake = FakeOllama()
    fake.tags = [tag("a:latest", "d1", capabilities=["vision"])]
    fake.tags[0]["details"]["context_length"] = 4096
    async with watching(fake) as ollama:
        report = await ollama.report()
    assert by_name(report)["a:latest"].capabilities == ("vision",)
    assert fake.asked["/api/show"] == 0


async def test_a_model_that_cannot_be_shown_is_still_listed_and_not_asked_for_ever() -> None:
    fake = FakeOllama()
    fake.broken = {"/api/show"}
    async with watching(fake) as ollama:
        for _ in range(4):
            await ollama.report()
        report = await ollama.report()
    assert set(by_name(report)) == {"llama3.2:3b", "nomic-embed-text:latest"}
    assert fake.asked["/api/show"] == 6


@pytest.mark.parametrize(("broken", "models", "loaded"), [("/api/tags", True, False), ("/api/ps", False, True)])
async def test_one_list_that_fails_leaves_the_other(broken: str, models: bool, loaded: bool) -> None:
    fake = FakeOllama()
    fake.broken = {broken}
    async with watching(fake) as ollama:
        report = await ollama.report()
    assert report.up
    assert ((report.models is None), (report.loaded is None)) == (models, loaded)


async def test_a_strange_model_does_not_cost_the_report() -> None:
    fake = FakeOllama()
    fake.tags += [tag("bad\u0000name", "d3"), tag("negative:latest", "d4", size=-5), tag("x" * 600, "d5")]
    async with watching(fake) as ollama:
        report = await ollama.report()
    assert set(by_name(report)) == {"llama3.2:3b", "nomic-embed-text:latest"}


async def test_an_ollama_that_is_gone_is_down_and_says_why() -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        ollama = Ollama("http://127.0.0.1:9", client, processes=list, environment={})
        report = await ollama.report()
    assert (report.up, report.models, report.loaded) == (False, None, None)
    assert ollama.trouble.startswith(f"no answer from {ollama.url} (")


async def test_something_else_at_its_address_is_no_ollama() -> None:
    fake = FakeOllama()
    fake.broken = {"/api/version"}
    async with watching(fake) as ollama:
        report = await ollama.report()
    assert not report.up
    assert "500" in ollama.trouble


@pytest.mark.parametrize(
    ("environment", "version", "slots"),
    [
        ({"OLLAMA_NUM_PARALLEL": "6"}, "0.12.0", 6),
        ({"OLLAMA_NUM_PARALLEL": "0"}, "0.12.0", 1),
        ({"OLLAMA_NUM_PARALLEL": "many"}, "0.12.0", 1),
        ({}, "0.10.0", 1),
        ({}, "0.33.0-rc2", 1),
        ({}, "1.0.0", 1),
        ({}, "0.0.0", 1),
        ({}, "0.9.3", 4),
        ({}, "0.5.4-ipexllm-20250407", 4),
        ({"OLLAMA_NUM_PARALLEL": "0"}, "0.9.6", 4),
    ],
)
def test_slots_are_what_its_environment_or_its_age_says(
    environment: Mapping[str, str], version: str, slots: int
) -> None:
    assert parallel_of(environment, version) == slots


async def test_limits_are_those_of_the_process_that_serves() -> None:
    mine = {"OLLAMA_NUM_PARALLEL": "3", "OLLAMA_MAX_LOADED_MODELS": "2", "OLLAMA_MODELS": "/data/models"}
    other = {"OLLAMA_NUM_PARALLEL": "9", "OLLAMA_HOST": "127.0.0.1:1"}
    async with watching(FakeOllama(), other, mine, environment={"OLLAMA_NUM_PARALLEL": "8"}) as ollama:
        report = await ollama.report()
    assert (report.parallel, report.loaded_max, ollama.models_dir) == (3, 2, Path("/data/models"))


async def test_limits_of_an_unreadable_process_are_those_around_the_agent() -> None:
    async with watching(FakeOllama(), environment={"OLLAMA_NUM_PARALLEL": "8"}) as ollama:
        report = await ollama.report()
    assert (report.parallel, report.loaded_max) == (8, 3)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", 11434), ("0.0.0.0", 11434), ("127.0.0.1:21499", 21499), (":5", 5), ("http://x:77", 77),
        ("http://x", 80), ("https://x", 443), ("'0.0.0.0:8'", 8), ("[::1]:9", 9), ("x:y", 0),
    ],
)  # fmt: skip
def test_a_server_listens_where_its_environment_says(host: str, port: int) -> None:
    assert listens_on({"OLLAMA_HOST": host}) == port


def test_models_are_kept_where_the_environment_says(tmp_path: Path) -> None:
    assert models_dir({"OLLAMA_MODELS": "/m"}) == Path("/m")
    (tmp_path / ".ollama" / "models").mkdir(parents=True)
    assert models_dir({"HOME": str(tmp_path)}) == tmp_path / ".ollama" / "models"


@pytest.mark.parametrize(
    ("template", "info", "projector", "capabilities"),
    [
        ("{{ .Prompt }}", {}, None, ("completion",)),
        ("{{ if .Tools }}…{{ end }}{{ .Suffix }}", {}, None, ("completion", "tools", "insert")),
        ("{{ .Prompt }}", {}, {"clip.has_vision_encoder": True}, ("completion", "vision")),
        ("{{ .Prompt }}", {"llama.vision.block_count": 32}, None, ("completion", "vision")),
        ("{{ .Tools }}", {"llama.pooling_type": 1}, None, ("embedding",)),
    ],
)
def test_an_old_ollama_lets_its_models_abilities_be_concluded(
    template: str, info: dict[str, Any], projector: dict[str, Any] | None, capabilities: tuple[str, ...]
) -> None:
    shown = Shown(template=template, model_info={"general.architecture": "llama", **info}, projector_info=projector)
    assert facts_of(shown).capabilities == capabilities


def test_nothing_is_concluded_from_nothing() -> None:
    assert facts_of(Shown()).capabilities == ()
