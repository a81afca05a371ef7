"""What a program reads is JSON on stdout; what a person reads is a table, in which text from elsewhere stays text."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

#: Width of a table that goes into a file or a pipe, where nothing should be cut off.
PIPE_WIDTH_COLUMNS = 200


def print_json(value: Any) -> None:
    """Print a value, or JSON as it came, indented."""
    encoded = value if isinstance(value, bytes) else msgspec.json.encode(value)
    click.echo(msgspec.json.format(encoded, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under headings. Cells are plain text: a node cannot colour, link or clear the terminal by its name."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - rich costs a tenth of a second, and --json needs none of it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH_COLUMNS).print(table)


def plain(text: str) -> str:
    """Return text without the control characters that a terminal would obey; line breaks and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def moment(at: int | float) -> str:
    """Return a time in ISO 8601 and UTC. `at` is in seconds since 1970, or as an int in nanoseconds."""
    seconds = at / 1e9 if isinstance(at, int) else at
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """Return a number with its unit, or a dash for one that nobody knows."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"
