"""Ollama says which models it has, but not how many requests it runs at once: that is read from its environment."""

import asyncio
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import psutil

from herd.errors import SettingsError
from herd.node.address import base_url, bracketed, host_of, is_loopback, port_of
from herd.node.engines.engine import ANSWER_TIMEOUT_S
from herd.wire import heartbeat as wire

logger = logging.getLogger(__name__)

T = TypeVar("T")

PORT = 11434

#: /api/show reads a model's file: few at once, and what is not known by then is in the next report.
SHOW_CONCURRENCY = 4
SHOW_BUDGET_S = 3.0
SHOW_ATTEMPTS = 3

#: How long what was read of its process is believed; looking costs a walk over all processes. Seconds.
PROCESS_LOOK_S = 60.0

#: Since this version a loaded model takes one request at a time by default; before, up to four.
ONE_AT_A_TIME_SINCE = (0, 10)
PARALLEL_BEFORE = 4

#: OLLAMA_MAX_LOADED_MODELS by default: three for each graphics card, and for a machine without.
LOADED_MAX_DEFAULT = 3

#: Where installers put the models of an Ollama that runs as another user.
SERVICE_DIRS = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models", "/var/lib/ollama/models")


class Version(msgspec.Struct):
    """GET /api/version."""

    version: str


class Details(msgspec.Struct):
    """What a model is made of."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] | None = None
    parameter_size: str = ""
    quantization_level: str = ""
    context_length: int | None = None
    embedding_length: int | None = None


class Tag(msgspec.Struct):
    """An entry of GET /api/tags."""

    name: str
    modified_at: str = ""
    size: int = 0
    digest: str = ""
    details: Details | None = None
    capabilities: list[str] | None = None


class Tags(msgspec.Struct):
    """GET /api/tags."""

    models: list[Tag] | None = None


class Running(msgspec.Struct):
    """An entry of GET /api/ps."""

    name: str
    size: int = 0
    size_vram: int = 0
    digest: str = ""
    details: Details | None = None
    expires_at: str = ""
    context_length: int | None = None


class Ps(msgspec.Struct):
    """GET /api/ps."""

    models: list[Running] | None = None


class Shown(msgspec.Struct):
    """The part of POST /api/show that we need."""

    capabilities: list[str] | None = None
    template: str = ""
    model_info: dict[str, Any] | None = None
    projector_info: dict[str, Any] | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a digest stands for; it never changes."""

    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    embedding_length: int = 0


class Ollama:
    """An Ollama that somebody else starts and stops."""

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        *,
        processes: Callable[[], Iterable[Mapping[str, str]]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.trouble = ""
        self.models_dir = models_dir(os.environ if environment is None else environment)
        self._client = client
        self._processes = processes or server_environments
        self._environment = os.environ if environment is None else environment
        self._served_by: Mapping[str, str] = self._environment
        self._looked_at_s: float | None = None
        self._seen_at = ""
        self._facts: dict[str, Facts] = {}
        self._failed: Counter[str] = Counter()
        self._show_slots = asyncio.Semaphore(SHOW_CONCURRENCY)

    async def answers(self) -> str:
        """Return the version of the Ollama that answers, empty where none does."""
        try:
            version = (await self._ask("GET", "/api/version", Version)).version
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self.trouble = f"no answer from {self.url} ({_why(error)})"
            return ""
        self.trouble = ""
        return version

    async def report(self) -> wire.Engine:
        """Return version, models on disk and in memory, and limits; an Ollama that is silent is down."""
        version = await self.answers()
        if not version:
            self._looked_at_s = None  # who knows how it will be started next time
            return wire.Engine(dialect="ollama", name="Ollama", url=self.url, up=False)
        tags, ps = await asyncio.gather(self._try("/api/tags", Tags), self._try("/api/ps", Ps))
        if tags is not None:
            await self._learn(tags.models or [])
        await self._look_at_process()
        return wire.Engine(
            dialect="ollama",
            name="Ollama",
            url=self.url,
            version=version[:512],
            parallel=parallel_of(self._served_by, version),
            loaded_max=_positive(self._served_by, "OLLAMA_MAX_LOADED_MODELS") or LOADED_MAX_DEFAULT,
            models=None if tags is None else fitting(map(self._model, tags.models or []), wire.Model),
            loaded=None if ps is None else fitting(map(_resident, ps.models or []), wire.Loaded),
        )

    async def be_reachable_at(self, host: str) -> None:
        """Look whether the router can reach it; where Ollama listens is not ours to change."""
        if host == self._seen_at or is_loopback(host) or not is_loopback(host_of(self.url)):
            return
        self._seen_at = host
        seen = f"http://{bracketed(host)}:{port_of(self.url)}"
        try:
            await self._client.get(f"{seen}/api/version", timeout=ANSWER_TIMEOUT_S)
        except httpx.HTTPError:
            logger.warning(
                "Ollama answers here but not at %s, so a router on another machine cannot use it; "
                "start it with OLLAMA_HOST=0.0.0.0",
                seen,
            )

    async def close(self) -> None:
        """Leave it running."""

    async def _ask(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        content = None if body is None else msgspec.json.encode(body)
        response = await self._client.request(method, self.url + path, content=content, timeout=ANSWER_TIMEOUT_S)
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=kind)

    async def _try(self, path: str, kind: type[T]) -> T | None:
        """Return an answer, or None: one list that cannot be had must not empty the other."""
        try:
            return await self._ask("GET", path, kind)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            logger.debug("Ollama failed %s: %s", path, _why(error))
            return None

    async def _learn(self, tags: list[Tag]) -> None:
        """Ask once for each digest what its model can do, where the list itself does not say."""
        here = {tag.digest: tag for tag in tags}
        self._facts = {digest: facts for digest, facts in self._facts.items() if digest in here}
        unknown = [
            tag
            for digest, tag in here.items()
            if digest not in self._facts and self._failed[digest] < SHOW_ATTEMPTS and not _complete(tag)
        ]
        try:
            async with asyncio.timeout(SHOW_BUDGET_S):
                await asyncio.gather(*(self._show(tag) for tag in unknown))
        except TimeoutError:
            logger.debug("%d models could not be looked at in time", len(unknown))

    async def _show(self, tag: Tag) -> None:
        async with self._show_slots:
            try:
                shown = await self._ask("POST", "/api/show", Shown, {"model": tag.name})
            except (httpx.HTTPError, msgspec.DecodeError) as error:
                self._failed[tag.digest] += 1
                logger.debug("Ollama failed /api/show of %s: %s", tag.name, _why(error), extra={"model": tag.name})
            else:
                self._facts[tag.digest] = facts_of(shown)

    async def _look_at_process(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._looked_at_s is not None and now - self._looked_at_s < PROCESS_LOOK_S:
            return
        self._looked_at_s = now
        environments = await asyncio.to_thread(lambda: list(self._processes()))
        port = port_of(self.url)
        self._served_by = next((each for each in environments if listens_on(each) == port), self._environment)
        self.models_dir = models_dir(self._served_by)

    def _model(self, tag: Tag) -> wire.Model:
        details = tag.details or Details()
        facts = self._facts.get(tag.digest) or Facts()
        return wire.Model(
            name=tag.name,
            size_bytes=tag.size,
            digest=tag.digest,
            modified_at=tag.modified_at,
            format=details.format,
            family=details.family,
            families=tuple(details.families or ()),
            parent_model=details.parent_model,
            parameter_size=details.parameter_size,
            quantization=details.quantization_level,
            context_length=details.context_length or facts.context_length,
            embedding_length=details.embedding_length or facts.embedding_length,
            capabilities=facts.capabilities if tag.capabilities is None else tuple(tag.capabilities),
        )


def _resident(running: Running) -> wire.Loaded:
    details = running.details or Details()
    return wire.Loaded(
        name=running.name,
        size_bytes=running.size,
        size_vram_bytes=running.size_vram,
        context_length=running.context_length or 0,
        expires_at=running.expires_at,
        digest=running.digest,
        parameter_size=details.parameter_size,
        quantization=details.quantization_level,
        family=details.family,
    )


def _complete(tag: Tag) -> bool:
    return tag.capabilities is not None and tag.details is not None and tag.details.context_length is not None


def fitting(found: Iterable[T], kind: type[T]) -> tuple[T, ...]:
    """Leave out what the router would refuse: one strange model must not cost the whole report."""
    kept: list[T] = []
    for each in found:
        try:
            kept.append(msgspec.convert(msgspec.to_builtins(each), kind))
        except msgspec.ValidationError as error:
            logger.debug("a model is left out of the report: %s", error)
    return tuple(kept[: wire.MODELS_MAX])


def facts_of(shown: Shown) -> Facts:
    """Read what a model can do; Ollama before 0.6.4 leaves the conclusion to its clients."""
    info = shown.model_info or {}
    family = str(info.get("general.architecture", ""))
    capabilities = shown.capabilities if shown.capabilities is not None else _inferred(shown, info, family)
    return Facts(
        capabilities=tuple(capabilities),
        context_length=_whole(info.get(f"{family}.context_length")),
        embedding_length=_whole(info.get(f"{family}.embedding_length")),
    )


def _inferred(shown: Shown, info: Mapping[str, Any], family: str) -> list[str]:
    """Conclude as later versions of Ollama do: by the pooling layer, and by the variables that the template uses."""
    if not info:
        return []
    if f"{family}.pooling_type" in info:
        return ["embedding"]
    found = ["completion"]
    if re.search(r"\.Tools\b", shown.template):
        found.append("tools")
    if re.search(r"\.Suffix\b", shown.template):
        found.append("insert")
    if shown.projector_info or f"{family}.vision.block_count" in info:
        found.append("vision")
    return found


def parallel_of(environment: Mapping[str, str], version: str) -> int:
    """Return how many requests a loaded model takes at once."""
    given = _positive(environment, "OLLAMA_NUM_PARALLEL")
    if given:
        return given
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    # 0.0.0 is what somebody built today.
    old = any(numbers) and tuple(numbers[:2]) < ONE_AT_A_TIME_SINCE
    return PARALLEL_BEFORE if old else 1


def server_environments() -> list[Mapping[str, str]]:
    """Return the environments of the `ollama serve` processes that we may read. Walks over all processes."""
    found: list[Mapping[str, str]] = []
    for process in psutil.process_iter():
        try:
            if process.name().lower().startswith("ollama") and "serve" in process.cmdline():
                found.append(process.environ())
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            continue
    return found


def listens_on(environment: Mapping[str, str]) -> int:
    """Return the port that an Ollama with this environment listens on; 0 where its OLLAMA_HOST makes no sense."""
    host = environment.get("OLLAMA_HOST", "").strip().strip("\"'")
    try:
        host = f"0.0.0.0{host}" if host.startswith(":") else host or "0.0.0.0"
        return port_of(base_url(host, "OLLAMA_HOST", PORT, tls=True))
    except SettingsError:
        return 0


def models_dir(environment: Mapping[str, str]) -> Path:
    """Return where an Ollama with this environment keeps its models."""
    given = environment.get("OLLAMA_MODELS")
    if given:
        return Path(given)
    home = environment.get("HOME") or environment.get("USERPROFILE") or "~"
    own = Path(home).expanduser() / ".ollama" / "models"
    return own if own.exists() else next((path for path in map(Path, SERVICE_DIRS) if path.exists()), own)


def _positive(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "").strip().strip("\"'")
    return int(value) if value.isdecimal() else 0


def _whole(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= 1_000_000_000 else 0


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return (
            f"it answers {error.response.status_code} to {error.request.url.path}, so it is no Ollama or a broken one"
        )
    return str(error) or type(error).__name__
