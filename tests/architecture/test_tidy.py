"""What reviewers would have to remember is checked here instead."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from docs import generate
from events.types import Event, Fact, Happened
from herd import __version__
from herd.cli import COMMANDS
from herd.routing import POLICIES
from herd.routing.signals import SIGNALS

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("events", "projections", "dashboard", "herd", "alembic", "docs", "bench")


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@cache
def modules() -> dict[str, tuple[str, tuple[ast.AST, ...]]]:
    """Return text and syntax of every module of the project, its tests and what benchmarks install aside."""
    found: dict[str, tuple[str, tuple[ast.AST, ...]]] = {}
    for package in PACKAGES:
        for folder, folders, files in os.walk(ROOT / package):
            if "build" in folders:
                folders.remove("build")
            for file in files:
                if file.endswith(".py"):
                    path = Path(folder, file)
                    text = path.read_text(encoding="utf-8")
                    found[str(path.relative_to(ROOT))] = (text, tuple(ast.walk(ast.parse(text))))
    assert len(found) > 100
    return found


def test_our_alembic_directory_does_not_shadow_the_library() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
    code = "import alembic.config, sys; print(alembic.config.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "site-packages" in found.stdout, found.stderr


def test_every_module_begins_with_its_reason() -> None:
    def begins_well(text: str, module: ast.AST) -> bool:
        assert isinstance(module, ast.Module)
        said = ast.get_docstring(module)
        return not text.strip() or bool(said and said.splitlines()[0].endswith((".", ":", "?")))

    assert [name for name, (text, nodes) in modules().items() if not begins_well(text, nodes[0])] == []


def test_no_module_holds_html() -> None:
    markup = re.compile(r"</?(html|body|div|span|table|script|style|p|ul|li|h[1-6])\b[^>]*>", re.IGNORECASE)
    found = [
        f"{name}:{node.lineno}"
        for name, (_, nodes) in modules().items()
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and markup.search(node.value)
    ]
    assert found == [], "pages belong into .html files"


def test_every_queue_between_threads_or_tasks_has_a_size() -> None:
    endless = [f"{name}:{line}" for name, (_, nodes) in modules().items() for line in lines_of_endless_queues(nodes)]
    assert endless == []


def lines_of_endless_queues(nodes: tuple[ast.AST, ...]) -> Iterator[int]:
    imported = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module in {"queue", "asyncio"}
        for alias in node.names
    }
    queues = {"Queue", "LifoQueue", "PriorityQueue"}
    for node in nodes:
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="queue" | "asyncio"), attr=name)) if name in queues:
                pass
            case ast.Call(func=ast.Name(id=name)) if name in queues & imported:
                pass
            case _:
                continue
        if not node.args and not any(word.arg == "maxsize" for word in node.keywords):
            yield node.lineno


def test_no_module_puts_its_types_off() -> None:
    assert [name for name, (text, _) in modules().items() if "from __future__ import annotations" in text] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    saying_nothing = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert [name for name in modules() if Path(name).stem in saying_nothing] == []


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_pages_made_from_the_code_are_current(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == generate.PAGES[page](), "run `make docs`"


@pytest.mark.parametrize("kind", get_args(Event))
def test_every_event_type_is_in_the_catalogue_with_what_it_means(kind: type[Happened]) -> None:
    tag = str(kind.__struct_config__.tag)
    assert f"\n### {tag}\n" in (ROOT / "docs" / "events.md").read_text()
    assert kind.__doc__
    assert kind.__doc__.rstrip().endswith(".")


def test_every_event_type_is_in_the_union_with_a_tag_of_its_own() -> None:
    def below(kind: type[Any]) -> Iterator[type[Any]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    defined = {kind for kind in below(Happened) if kind.__module__ == "events.types" and kind.__struct_config__.tag}
    concrete = {kind for kind in defined if not kind.__subclasses__()}
    assert concrete == set(get_args(Event))
    tags = [str(kind.__struct_config__.tag) for kind in get_args(Event)]
    assert len(set(tags)) == len(tags)
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", tag) for tag in tags)


def test_every_part_of_an_event_is_in_the_catalogue() -> None:
    page = (ROOT / "docs" / "events.md").read_text()
    assert all(f"\n### {kind.__name__}\n" in page for kind in Fact.__subclasses__())


def test_every_registry_entry_says_what_it_is() -> None:
    assert all(command.help for command in COMMANDS)
    assert all(signal.__doc__ for signal in SIGNALS.values())
    assert all(policy.__doc__ for policy in POLICIES.values())


def test_every_signal_is_a_file_and_every_file_a_signal() -> None:
    files = {path.stem for path in (ROOT / "herd" / "routing" / "signals").glob("*.py")} - {"__init__"}
    assert files == set(SIGNALS)


def test_versions_agree() -> None:
    assert pyproject()["project"]["version"] == __version__
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_earns_its_place_in_the_docs() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    needed = [*pyproject()["project"]["dependencies"], *pyproject()["dependency-groups"]["dev"]]
    names = {re.split(r"[\[<>=!~; ]", need, maxsplit=1)[0] for need in needed}
    assert names == set(re.findall(r"^\| `([\w.-]+)` \|", page, re.MULTILINE))


def test_the_lock_files_hold_every_dependency_with_hashes() -> None:
    for name, needed in (
        ("requirements.lock", pyproject()["project"]["dependencies"]),
        ("requirements-dev.lock", pyproject()["dependency-groups"]["dev"]),
    ):
        text = (ROOT / name).read_text()
        locked = set(re.findall(r"^([\w.-]+)==\S+(?: ; .*?)? \\\n    --hash=", text, re.MULTILINE))
        missing = {re.split(r"[\[<>=!~; ]", need, maxsplit=1)[0] for need in needed} - locked
        assert not missing, f"{name} lacks {missing}: run `make lock`"


def test_check_runs_every_tool_and_ci_runs_what_make_test_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    for tool in ("ruff format --check", "ruff check", "pyright", "lint-imports", "pytest"):
        assert tool in recipe
    assert "\ntest: check " in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_target_of_make_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split()
    assert set(re.findall(r"^([a-z-]+):.*## \w", makefile, re.MULTILINE)) == set(phony)


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_paths_that_the_docs_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "DEVELOPERS.md", ROOT / "docs" / "architecture.md"]
    for page in pages:
        for path in re.findall(
            r"`((?:herd|events|projections|dashboard|tests|docs|bench|alembic)/[\w./-]*)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
