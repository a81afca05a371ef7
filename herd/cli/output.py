"""What a program reads is JSON on stdout; what a person reads is a table, in which text from elsewhere stays text."""

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

GAP = "  "
#: A column that folds is not shown in fewer columns of the terminal than this, unless its text is shorter.
FOLDED_MIN_COLUMNS = 24


class Column(msgspec.Struct, frozen=True):
    """A column of a table."""

    heading: str
    rank: int
    """What is shown first where the terminal is too narrow for all: 0 always, then 1, 2, …"""
    right: bool = False
    """Whether its cells stand at the right, as numbers do."""
    folds: bool = False
    """Whether a long cell may take several lines, folded between words. Others never are: half an id is none."""


def print_json(value: Any) -> None:
    """Print a value, or JSON as it came, indented."""
    encoded = value if isinstance(value, bytes) else msgspec.json.encode(value)
    click.echo(msgspec.json.format(encoded, indent=2))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> None:
    """Print rows under headings, as wide as the terminal, and below each row its note, if there is one.

    What goes into a file or a pipe is as wide as it must be.
    """
    for line in table(columns, list(rows), list(notes), width_columns=terminal_columns()):
        click.echo(line)


def terminal_columns() -> int | None:
    """Return how wide the terminal is; None where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], notes: Sequence[str] = (), *, width_columns: int | None
) -> list[str]:
    """Return the lines of a table, none longer than the terminal is wide as far as the columns of rank 0 allow.

    Cells are plain text: a node cannot colour, link or clear the terminal by its name.
    """
    cells = [[plain(cell, keep="") for cell in row] for row in rows]
    natural = [max(map(width, texts)) for texts in zip([column.heading for column in columns], *cells, strict=True)]
    least = list(natural)
    for place, column in enumerate(columns):
        if column.folds:
            words = (word for row in cells for word in row[place].split())
            least[place] = min(natural[place], max(FOLDED_MIN_COLUMNS, *map(width, words), 0))
    shown = fitting([column.rank for column in columns], least, width_columns)
    widths = {place: natural[place] for place in shown}
    if width_columns is not None:
        missing = sum(widths.values()) + len(GAP) * (len(shown) - 1) - width_columns
        for place in shown:
            widths[place] = max(natural[place] - max(missing, 0), least[place])
            missing -= natural[place] - widths[place]
    lines = [
        click.style(beside([column.heading for column in columns], columns, widths), bold=True),
        GAP.join("-" * columns_taken for columns_taken in widths.values()),
    ]
    for number, row in enumerate(cells):
        lines += folded_row(row, columns, widths)
        if number < len(notes) and notes[number]:
            lines += indented(plain(notes[number], keep=""), width_columns)
    if hidden := [column.heading for place, column in enumerate(columns) if place not in shown]:
        lines += indented(f"The terminal is too narrow for: {', '.join(hidden)}. --json has all.", width_columns, 0)
    return lines


def fitting(ranks: Sequence[int], least: Sequence[int], width_columns: int | None) -> list[int]:
    """Return the places of the columns that fit, in their order; those of a lower rank have the first choice."""
    if width_columns is None:
        return list(range(len(ranks)))
    room = width_columns + len(GAP)
    chosen: list[int] = []
    for place in sorted(range(len(ranks)), key=ranks.__getitem__):
        if ranks[place] == 0 or least[place] + len(GAP) <= room:
            chosen.append(place)
            room -= least[place] + len(GAP)
    return sorted(chosen)


def folded_row(row: Sequence[str], columns: Sequence[Column], widths: dict[int, int]) -> Iterable[str]:
    """Yield the lines of a row: more than one where a cell had to be folded."""
    parts = [
        folded(cell, widths[place]) if columns[place].folds and place in widths else [cell]
        for place, cell in enumerate(row)
    ]
    for number in range(max(map(len, parts))):
        yield beside([part[number] if number < len(part) else "" for part in parts], columns, widths)


def beside(cells: Sequence[str], columns: Sequence[Column], widths: dict[int, int]) -> str:
    """Return those cells of a line that are shown, each as wide as its column."""
    padded: list[str] = []
    for place, columns_taken in widths.items():
        space = " " * (columns_taken - width(cells[place]))
        padded.append(space + cells[place] if columns[place].right else cells[place] + space)
    return GAP.join(padded).rstrip()


def folded(text: str, width_columns: int) -> list[str]:
    """Return text in lines, broken between words only."""
    return textwrap.wrap(text, width_columns, break_long_words=False, break_on_hyphens=False) or [""]


def indented(text: str, width_columns: int | None, indent: int = 4) -> list[str]:
    """Return text in lines that begin with spaces; in one where there is no terminal to be narrow."""
    lines = [text] if width_columns is None else folded(text, max(width_columns - indent, FOLDED_MIN_COLUMNS))
    return [" " * indent + line for line in lines]


def width(text: str) -> int:
    """Return how many columns of a terminal text takes: two for a Chinese character, none for an accent on another."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def plain(text: str, keep: str = "\n\t") -> str:
    """Return text without the control characters that a terminal would obey, but for those to keep."""
    return "".join(char if char.isprintable() or char in keep else "\ufffd" for char in text)


def local_time(at: int | float) -> str:
    """Return a time as clocks show it here. `at` is in seconds since 1970, or as an int in nanoseconds."""
    seconds = at / 1e9 if isinstance(at, int) else at
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """Return a number with its unit, or a dash for one that nobody knows."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def duration(ms: float | None) -> str:
    """Return a time in the unit that people would say it in, or a dash for one that nobody knows."""
    return number(ms, unit=" ms") if ms is None or ms < 1000 else number(ms / 1000, 1, " s")


def count(number: int, noun: str) -> str:
    """Return a number of things in words: `1 node`, `2 nodes`."""
    return f"{number:,} {noun if number == 1 else f'{noun}s'}"
