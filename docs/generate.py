"""Pages about flags, settings and events rot when people write them, so they are made from the code: `make docs`."""

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec

from events import types
from events.recorded import Recorded
from herd.cli import program
from herd.cli.events import TYPES
from herd.cli.herd import main as herd
from herd.cli.herd_node import main as herd_node
from herd.cli.settings import Effective
from herd.replay.verify import Difference, Report
from herd.settings import NODE_PREFIX, ROUTER_PREFIX, NodeSettings, RouterSettings, catalogue
from projections.runner import Verification
from projections.traces import Trace

ROOT = Path(__file__).parent.parent
WIDTH_COLUMNS = 100
MADE = "<!-- Made from the code by `make docs`: edit it there. -->"

#: Packages in which events are recorded and read.
PACKAGES = ("events", "projections", "herd")

#: Ends of field names, and the unit that they mean: units come last in names.
UNITS = {
    "ms": "milliseconds",
    "s": "seconds",
    "gib": "GiB",
    "bytes": "bytes",
    "gbps": "10^9 bytes/s",
    "pct": "percent",
    "c": "degrees Celsius",
    "tokens": "tokens",
}

#: What fields of the same name mean wherever the source does not say more.
COMMON = {
    "node": "Name of the node.",
    "request": "Id of the request.",
    "attempt": "1 for the first choice; each retry counts on.",
    "event": "What happened: one of the catalogue, its tag in `type`.",
}


def cli() -> str:
    """Return the page about the command line."""
    parts = [
        MADE,
        "# The command line",
        "What a command prints is on stdout. Errors are on stderr: one line, and a `hint:` on what to do. "
        "With `--json` stdout is JSON for programs, in shapes that change only by addition.",
        "## Exit codes",
        table(("code", "meaning"), [(str(code), meaning) for code, meaning in program.MEANINGS.items()]),
        f"`{program.TRACEBACK_VARIABLE}=1` shows where a bug happened.",
    ]
    for path, command in [*commands("herd", herd), *commands("herd-node", herd_node)]:
        parts += [f"{'##' if ' ' not in path else '###'} {path}", f"```text\n{help_of(path, command)}\n```"]
    parts += [
        "## Shapes of JSON",
        "### herd status --json",
        "The body of `GET /fleet/status`, as the router sent it.",
        "### herd traces --json",
        '`{"traces": [...]}`, newest first. Each has the columns of the table `request_traces`:',
        fields_table(Trace),
        "### herd events list, tail --json and export",
        "An object a line; [events.md](events.md) tells what `event` may be:",
        fields_table(Recorded),
        "### herd events verify --json",
        fields_table(Verification),
        "and `ok`, which is true when there are no differences.",
        "### herd replay verify --json",
        fields_table(Report),
        "and `ok`, which is true when every decision that can be checked comes out the same. "
        "Differences have this shape:",
        fields_table(Difference),
        "### herd settings --json",
        '`{"env_file": "...", "router": [...], "node": [...], "unknown": {...}}`, where each setting has',
        fields_table(Effective),
    ]
    return page(parts)


def settings() -> str:
    """Return the page about settings."""
    parts = [
        MADE,
        "# Settings",
        "A flag beats an environment variable, which beats the env file, which beats the default. "
        "`herd settings` shows each value and where it comes from.",
        "The env file is `~/.fleet-manager/env`, or what `FLEET_ENV_FILE` names. Its lines are `KEY=value`; `export `, "
        "`#` comments and outer quotes are allowed. An empty variable counts as not set. A variable that begins with "
        "`FLEET_` and is none of these has no effect; `herd settings` and the router's start point it out.",
    ]
    for title, kind, prefix in (("herd", RouterSettings, ROUTER_PREFIX), ("herd-node", NodeSettings, NODE_PREFIX)):
        rows = [(f"`{s.variable}`", f"`{shown(s.default)}`", s.must_be, s.about) for s in catalogue(kind, prefix)]
        parts += [f"## {title}", table(("variable", "default", "must be", "meaning"), rows)]
    return page(parts)


def events() -> str:
    """Return the catalogue of events."""
    parts = [
        MADE,
        "# Events",
        "Everything that can happen, in the words of the log. A tag is permanent; fields are only ever added. Prompts, "
        "answers, images and secrets never enter an event.",
        "Around each event the log keeps:",
        fields_table(Recorded),
        "## The catalogue",
        table(
            ("tag", "meaning"),
            [(f"[`{tag}`](#{anchor(tag)})", first_sentence(kind)) for tag, kind in TYPES.items()],
        ),
    ]
    for tag, kind in TYPES.items():
        parts += [f"### {tag}", inspect.getdoc(kind) or "", fields_table(kind)]
        writers, readers = uses(kind.__name__)
        parts.append(f"Written by {listed(writers)}. Read by {listed(readers)}.")
    parts += ["## Parts of events", *building_blocks()]
    return page(parts)


def building_blocks() -> Iterator[str]:
    """Yield a section for each struct that events are made of."""
    for name, kind in inspect.getmembers(types, inspect.isclass):
        if issubclass(kind, types.Fact) and kind is not types.Fact:
            yield f"### {name}"
            yield inspect.getdoc(kind) or ""
            yield fields_table(kind)


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "settings.md": settings, "events.md": events}


# --- commands -------------------------------------------------------------------------------------------------------


def commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all below it, each with the words that run it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(f"{path} {name}", child)


def help_of(path: str, command: click.Command) -> str:
    """Return a command's help, as wide as it is on everybody's machine."""
    names = ["-h", "--help"] if path.startswith("herd") else None
    context = click.Context(command, info_name=path, terminal_width=WIDTH_COLUMNS, help_option_names=names)
    return command.get_help(context)


# --- structs --------------------------------------------------------------------------------------------------------


def fields_table(kind: type[Any]) -> str:
    """Return the fields of a struct: name, type, unit and meaning."""
    rows = [
        (f"`{name}`", f"`{annotation}`".replace("|", "\\|"), " ".join(filter(None, (unit(name), text))))
        for name, annotation, text in documented(kind)
    ]
    return table(("field", "type", "meaning"), rows) if rows else "It has no fields."


def documented(kind: type[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and description of each field, inherited ones first, as the source spells them."""
    for base in reversed(kind.__mro__):
        if not issubclass(base, msgspec.Struct) or base is msgspec.Struct:
            continue
        body = class_body(base)
        for place, statement in enumerate(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                if name in kind.__struct_fields__:
                    text = text_after(body, place) or COMMON.get(name, "")
                    yield name, ast.unparse(statement.annotation), text


def class_body(kind: type[Any]) -> list[ast.stmt]:
    """Return the statements of a class."""
    tree = parsed(Path(inspect.getfile(kind)))
    return next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == kind.__name__)


def text_after(body: list[ast.stmt], place: int) -> str:
    """Return the string that stands under a field, which describes it, on one line."""
    match body[place + 1 : place + 2]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return " ".join(text.split())
        case _:
            return ""


def unit(name: str) -> str:
    """Return the unit of a field from the end of its name, as a sentence."""
    words = name.split("_")
    found = UNITS.get(words[-1]) if len(words) > 1 else None
    return f"In {found}." if found else ""


def uses(event: str) -> tuple[list[str], list[str]]:
    """Return the modules that make an event of this type, and those that otherwise name it."""
    writers: list[str] = []
    readers: list[str] = []
    for path in sources():
        called, named = names_in(path)
        if event in called:
            writers.append(str(path.relative_to(ROOT)))
        elif event in named:
            readers.append(str(path.relative_to(ROOT)))
    return writers, readers


@cache
def sources() -> tuple[Path, ...]:
    """Return every module that may use events, in order."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return tuple(sorted(path for path in found if path.name != "types.py"))


@cache
def names_in(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a module calls, and all that it uses otherwise; patterns are no calls."""
    nodes = list(ast.walk(parsed(path)))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    named = {node.id for node in nodes if isinstance(node, ast.Name)}
    return frozenset(called), frozenset(named)


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


# --- Markdown -------------------------------------------------------------------------------------------------------


def page(parts: list[str]) -> str:
    """Return the text of a page."""
    return "\n\n".join(parts) + "\n"


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def anchor(heading: str) -> str:
    """Return what a heading is called in links."""
    return "".join(char for char in heading.lower() if char.isalnum() or char in "-_ ").replace(" ", "-")


def first_sentence(kind: type[Any]) -> str:
    """Return what a class is, in a sentence."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def listed(paths: list[str]) -> str:
    """Return paths as a list in a sentence."""
    return ", ".join(f"`{path}`" for path in paths) or "nobody yet"


def shown(value: Any) -> str:
    """Return a default as one writes it into the env file."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> None:
    """Write the pages."""
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8")
        click.echo(f"docs/{name}")


if __name__ == "__main__":
    main()
