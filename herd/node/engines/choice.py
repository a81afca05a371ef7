"""Whoever has Ollama wants it used, and whoever has not should not have to install anything first."""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from typing import Literal

from herd.errors import StartupError
from herd.node.engines.embedded import Embedded
from herd.node.engines.engine import Engine
from herd.node.engines.ollama import Ollama

logger = logging.getLogger(__name__)

#: At boot Ollama may start after the agent. It is waited for only where it is installed, seconds.
BOOT_WAIT_S = 10.0
BOOT_POLL_S = 0.5


class Choice:
    """Which engine the agent reports on."""

    def __init__(
        self,
        wanted: Literal["auto", "ollama", "embedded"],
        ollama: Ollama,
        embedded: Callable[[], Awaitable[Embedded]],
        *,
        installed: Callable[[], bool] = lambda: shutil.which("ollama") is not None,
        boot_wait_s: float = BOOT_WAIT_S,
    ) -> None:
        self._wanted = wanted
        self._ollama = ollama
        self._embedded = embedded
        self._installed = installed
        self._boot_wait_s = boot_wait_s

    async def first(self) -> Engine:
        """Return the engine to begin with, started. Raises `StartupError` where the one insisted on cannot be had."""
        if self._wanted == "embedded":
            return await self._started()
        if self._wanted == "ollama" or await self._ollama_comes_up():
            return self._ollama
        if self._installed():
            logger.warning(
                "Ollama is installed but not running (start it with `ollama serve`); the built-in llama.cpp serves "
                "until it answers at %s",
                self._ollama.url,
            )
        else:
            logger.info("no Ollama answers at %s; the built-in llama.cpp serves instead", self._ollama.url)
        try:
            return await self._started()
        except StartupError as error:
            logger.error("%s. %s", error.message, error.hint)  # noqa: TRY400 - the operator's trouble, not a bug
            return self._ollama

    async def again(self, engine: Engine) -> Engine:
        """Return the engine to go on with; call it while no request runs. Ollama is preferred once it answers."""
        if self._wanted != "auto" or engine is self._ollama or not await self._ollama.answers():
            return engine
        logger.info("Ollama answers at %s now, so the built-in llama.cpp stops", self._ollama.url)
        await engine.close()
        return self._ollama

    async def _started(self) -> Embedded:
        embedded = await self._embedded()
        await embedded.start()
        return embedded

    async def _ollama_comes_up(self) -> bool:
        now = asyncio.get_running_loop().time
        until_s = now() + (self._boot_wait_s if self._installed() else 0.0)
        while not await self._ollama.answers():
            if now() >= until_s:
                return False
            await asyncio.sleep(BOOT_POLL_S)
        return True
