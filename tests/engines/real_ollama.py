"""Starting and stopping a real server cleanly is the same dozen lines for every test that wants one."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.engines.get_ollama import EngineUnavailable, get_ollama, get_weights, once

CHAT_MODEL = "smollm2:135m"
TOOLS_MODEL = "smollm2:tools"
"""The same weights under a template that offers tools; a model this small never calls one."""
EMBED_MODEL = "all-minilm:latest"

START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 10
CREATE_TIMEOUT_S = 120

_MODELFILES = {
    CHAT_MODEL: "Modelfile.smollm2",
    TOOLS_MODEL: "Modelfile.smollm2-tools",
    EMBED_MODEL: "Modelfile.minilm",
}
_ADDRESS = re.compile(r"Listening on (127\.0\.0\.1:\d+)")


class RealOllama:
    """A real Ollama on loopback, computing on the processor only, alive inside a `with` block.

    It serves the three models above. They lie in a folder that all tests share and must not change, unless
    `own_models` asks for a private copy (hard links: cheap) that may be pulled into and deleted from.
    Raises EngineUnavailable from `__enter__` when the engine or the models cannot be had, or it does not start.
    """

    def __init__(self, version: str, *, own_models: bool = False, environment: dict[str, str] | None = None) -> None:
        self.version = version
        self.url = ""
        self.models_folder = Path()
        self._own_models = own_models
        self._environment = environment or {}

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="herd-ollama-")
        try:
            scratch = Path(self._scratch.name)
            self.models_folder = get_models(self.version)
            if self._own_models:
                shared, self.models_folder = self.models_folder, scratch / "models"
                shutil.copytree(shared, self.models_folder, copy_function=os.link)
            self._server = _Server(self.version, self.models_folder, scratch, self._environment)
        except BaseException:
            self._scratch.cleanup()
            raise
        self.url = f"http://{self._server.address}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self._scratch.cleanup()

    @property
    def process_id(self) -> int:
        """Of the server; its runners belong to the session of the same number."""
        return self._server.process_id

    @property
    def log(self) -> str:
        """What the server has written to its log so far."""
        return self._server.log


def get_models(version: str) -> Path:
    """Return an OLLAMA_MODELS folder made by this version with its own `ollama create` (a few seconds, 190 MB).

    Raises EngineUnavailable.
    """

    def make(folder: Path) -> None:
        program, weights = get_ollama(version), get_weights()
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            for file in weights.iterdir():
                (scratch / file.name).symlink_to(file)
            server = _Server(version, folder, scratch, {})
            try:
                for model, modelfile in _MODELFILES.items():
                    copied = shutil.copy(Path(__file__).parent / modelfile, scratch)
                    subprocess.run(
                        [program, "create", model, "-f", copied],
                        env=_environment(server.address, folder, scratch),
                        timeout=CREATE_TIMEOUT_S, capture_output=True, check=True,
                    )  # fmt: skip
            finally:
                server.stop()

    return once(f"models-{version}", make)


class _Server:
    """One `ollama serve` process, with everything that it starts itself."""

    def __init__(self, version: str, models: Path, scratch: Path, environment: dict[str, str]) -> None:
        self._log = scratch / "serve.log"
        with self._log.open("wb") as log:
            # Port 0: the system picks a free one, and the log says which. In a session of its own, so that the last
            # resort reaches the runner processes as well.
            self._process = subprocess.Popen(
                [get_ollama(version), "serve"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=_environment("127.0.0.1:0", models, scratch) | environment,
            )  # fmt: skip
        self.address = self._wait_for_address()

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := _ADDRESS.search(self.log):
                return found[1]
            time.sleep(0.02)
        self.stop()
        raise EngineUnavailable(f"ollama serve did not start:\n{self.log[-2000:]}")


def _environment(address: str, models: Path, home: Path) -> dict[str, str]:
    """Nothing of the developer's own Ollama settings may leak in."""
    inherited = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return inherited | {
        "HOME": str(home),
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(models),
        # This build's default is to put every layer on a GPU, with operations that the processor code aborts on.
        "OLLAMA_NUM_GPU": "0",
        "OLLAMA_NUM_PARALLEL": "1",
        "no_proxy": "127.0.0.1,localhost",
    }
