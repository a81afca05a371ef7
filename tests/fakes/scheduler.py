"""Queues form inside a node as well, so a fake that answers everything at once would flatter every routing policy."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from tests.fakes.connection import Bell

FOREVER_S = 292 * 365 * 86400.0
"""What Ollama makes of a negative keep-alive: the longest time Go can count."""


class FakeModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the disk of a fake node."""

    name: str
    """Canonical, with a tag."""
    capabilities: tuple[str, ...] = ("completion", "tools")
    size_bytes: int = 4_661_224_676
    digest: str = ""
    """64 hex digits. Two names with one digest share a runner, as two names for the same weights do."""
    family: str = "llama"
    parameter_size: str = "8.0B"
    quantization: str = "Q4_K_M"
    context_length: int = 8192
    embedding_length: int = 64
    modified_at: str = "2026-01-01T12:00:00.123456789Z"

    @property
    def details(self) -> dict[str, Any]:
        """The object of that name in tags, ps and show."""
        return {
            "parent_model": "", "format": "gguf", "family": self.family, "families": [self.family],
            "parameter_size": self.parameter_size, "quantization_level": self.quantization,
        }  # fmt: skip


class Loaded(msgspec.Struct, kw_only=True):
    """A runner: one model in memory."""

    model: FakeModel
    """Under the name that loaded it."""
    runner_options: tuple[tuple[str, object], ...]
    num_ctx: int
    slots: asyncio.Semaphore
    users: int = 0
    """Requests that run or wait for a slot."""
    keep_alive_s: float
    idle_since: float = 0.0
    used_at: float = 0.0

    @property
    def expires_at(self) -> float:
        """Seconds on the monotonic clock."""
        return (time.monotonic() if self.users else self.idle_since) + self.keep_alive_s

    @property
    def size_bytes(self) -> int:
        """Weights plus a key-value cache that grows with the context."""
        return self.model.size_bytes + self.num_ctx * 131_072


class Wish(NamedTuple):
    """What a request needs of the scheduler."""

    model: FakeModel
    num_ctx: int
    runner_options: tuple[tuple[str, object], ...] = ()
    keep_alive_s: float | None = None
    """None = leave it as it is."""


class QueueFull(Exception):
    """Too many requests wait for a load."""


class Scheduler:
    """Slots per loaded model with a first-come queue, one load at a time, and eviction of the model idle for longest.

    As in Ollama only requests that wait for a load are limited; those for a loaded model wait without bound.
    """

    def __init__(
        self, bell: Bell, *, num_parallel: int, max_loaded: int, max_queue: int, load_ms: float, keep_alive_s: float
    ) -> None:
        self.num_parallel, self.max_loaded, self.max_queue, self.load_ms = num_parallel, max_loaded, max_queue, load_ms
        self.keep_alive_s = keep_alive_s
        self.loads: Counter[str] = Counter()
        """Loads per model name, reloads for other options included."""
        self.evictions: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        """Requests that hold a slot now, per model name."""
        self.waiting: Counter[str] = Counter()
        """Requests that wait for a slot or a load now, per model name."""
        self.peak: Counter[str] = Counter()
        """The most requests that ever held a slot at once, per model name."""
        self._bell = bell
        self._loaded: dict[str, Loaded] = {}
        self._load = asyncio.Lock()
        self._load_queue = 0

    @property
    def loaded(self) -> list[Loaded]:
        """The models in memory, the one that stays longest first."""
        now = time.monotonic()
        for key, runner in list(self._loaded.items()):
            if not runner.users and runner.expires_at <= now:
                del self._loaded[key]
        return sorted(self._loaded.values(), key=lambda runner: -runner.expires_at)

    @asynccontextmanager
    async def slot(self, wish: Wish) -> AsyncGenerator[float]:
        """Hold a slot; gives the seconds that loading took. Raises QueueFull."""
        name = wish.model.name
        self.waiting[name] += 1
        self._bell.ring()
        runner: Loaded | None = None
        try:
            try:
                runner, load_s = await self._runner(wish)
                await runner.slots.acquire()
            finally:
                self.waiting[name] -= 1
            self.running[name] += 1
            self.peak[name] = max(self.peak[name], self.running[name])
            self._bell.ring()
            try:
                yield load_s
            finally:
                self.running[name] -= 1
                runner.slots.release()
        finally:
            if runner is not None:
                self._leave(runner)
            self._bell.ring()

    async def load(self, wish: Wish) -> None:
        """Have the model in memory. Raises QueueFull."""
        runner, _ = await self._runner(wish)
        self._leave(runner)
        self._bell.ring()

    def unload(self, model: FakeModel) -> None:
        """Drop the model: at once if idle, else when its last request ends."""
        if runner := self._loaded.get(model.digest):
            runner.keep_alive_s = 0.0
            if not runner.users:
                del self._loaded[model.digest]
        self._bell.ring()

    async def _runner(self, wish: Wish) -> tuple[Loaded, float]:
        if runner := self._fitting(wish):
            return runner, 0.0
        if self._load_queue > self.max_queue:
            raise QueueFull
        self._load_queue += 1
        started = time.monotonic()
        try:
            async with self._load:
                runner = self._fitting(wish) or await self._load_now(wish)
        finally:
            self._load_queue -= 1
        return runner, time.monotonic() - started

    def _fitting(self, wish: Wish) -> Loaded | None:
        """The runner for this wish, with one more user, or None."""
        runner = next((each for each in self.loaded if each.model.digest == wish.model.digest), None)
        if runner is None or runner.num_ctx != wish.num_ctx or runner.runner_options != wish.runner_options:
            return None
        runner.users += 1
        runner.used_at = time.monotonic()
        if wish.keep_alive_s is not None:
            runner.keep_alive_s = wish.keep_alive_s
        return runner

    async def _load_now(self, wish: Wish) -> Loaded:
        key = wish.model.digest
        while victim := self._loaded.get(key) or self._victim():
            self.unload(victim.model)
            await self._bell.until(lambda runner=victim: not runner.users)
            if victim.model.digest not in self._loaded and victim.model.digest != key:
                self.evictions[victim.model.name] += 1
        await asyncio.sleep(self.load_ms / 1000)
        # An embedding model never gets more than one slot.
        slots = self.num_parallel if "embedding" not in wish.model.capabilities else 1
        keep_alive_s = self.keep_alive_s if wish.keep_alive_s is None else wish.keep_alive_s
        runner = Loaded(
            model=wish.model, runner_options=wish.runner_options, num_ctx=wish.num_ctx, slots=asyncio.Semaphore(slots),
            users=1, keep_alive_s=keep_alive_s, used_at=time.monotonic(),
        )  # fmt: skip
        self._loaded[key] = runner
        self.loads[wish.model.name] += 1
        self._bell.ring()
        return runner

    def _victim(self) -> Loaded | None:
        """Who must go before another model fits: the idle one used longest ago, else the busy one, to be drained."""
        if len(self.loaded) < self.max_loaded:
            return None
        return min(self._loaded.values(), key=lambda runner: (runner.users > 0, runner.used_at))

    def _leave(self, runner: Loaded) -> None:
        runner.users -= 1
        runner.idle_since = time.monotonic()
        if not runner.users and runner.keep_alive_s <= 0:
            self._loaded.pop(runner.model.digest, None)
