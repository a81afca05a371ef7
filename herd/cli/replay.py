"""A router that says it can prove its decisions must let anyone ask for the proof."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from events.recorded import Recorded
from events.store import StoreError
from herd.cli import options
from herd.cli.events import opened
from herd.cli.output import count, plain, print_json
from herd.cli.program import BAD_NEWS, OK, UNREACHABLE, Unreachable, complain, notes

if TYPE_CHECKING:
    from herd.replay.verify import Report
    from projections.view import View


@click.group(
    epilog=notes(
        "herd replay verify",
        "herd events export -o log.jsonl && herd replay verify --log log.jsonl",
    )
)
def replay() -> None:
    """Decide again what was decided, and compare."""


@replay.command(
    epilog=notes(
        "herd replay verify",
        "herd events export -o log.jsonl && herd replay verify --log log.jsonl --json",
        codes={
            OK: "every decision that can be checked comes out the same, bit for bit",
            BAD_NEWS: "a decision differs, or could not be asked again",
            UNREACHABLE: "the log could not be opened",
        },
    )
)
@options.data_dir
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="A file that `herd events export` wrote.")
@options.json_flag
def verify(data_dir: str | None, log: Path | None, as_json: bool) -> int:
    """Ask every recorded decision again, and compare.

    Each is asked under the policy that made it, and scores and choice must come out the same, bit for bit.
    Reads the database of the log, whether or not the router runs, or with --log an exported file.
    """
    if log is not None and data_dir is not None:
        raise click.UsageError("--log and --data-dir exclude each other")
    from herd.replay.verify import verify as ask_again  # noqa: PLC0415 - what it needs, `herd --help` need not wait for
    from herd.routing import POLICIES  # noqa: PLC0415

    with recorded_in(log) if log is not None else from_database(data_dir) as (events, after_losses):
        report = ask_again(events, POLICIES, after_losses)
    if as_json:
        print_json({"ok": report.ok} | msgspec.structs.asdict(report))
    else:
        show(report)
    return OK if report.ok else BAD_NEWS


@contextmanager
def from_database(data_dir: str | None) -> Generator[tuple[Iterator[Recorded], "dict[int, View]"]]:
    """Open the database's events, up to its present end (the router may go on writing), and its views after losses."""
    from projections.runner import after_losses  # noqa: PLC0415 - see `verify`

    with opened(data_dir) as reader:
        yield reader.read(until=reader.head), after_losses(reader)


@contextmanager
def recorded_in(log: Path) -> Generator[tuple[Iterator[Recorded], "dict[int, View]"]]:
    """Open an exported file's events, which come without views.

    Raises `Unreachable` when it is not there, and reading it, when it is no log.
    """
    try:
        file = log.open("rb")
    except OSError as error:
        raise Unreachable(
            f"cannot open {log}: {error.strerror}", hint="`herd events export` writes such a file."
        ) from error
    with file:
        yield lines_of(file, log), {}


def lines_of(file: Iterator[bytes], log: Path) -> Iterator[Recorded]:
    """Yield the events of a file; a bad line is named by its number."""
    from events import jsonl  # noqa: PLC0415 - see `verify`

    for number, line in enumerate(file, start=1):
        try:
            yield jsonl.load(line)
        except StoreError as error:
            raise Unreachable(
                f"{log}, line {number}: {error}", hint="`herd events export` writes such a file."
            ) from error


def show(report: "Report") -> None:
    """Print the report for a person."""
    asked = report.decisions - report.not_checkable
    click.echo(
        f"{count(report.events, 'event')} read, {count(asked, 'decision')} asked again, {report.identical:,} identical"
    )
    for seam in report.seams:
        click.echo(f"  {plain(seam.sentence)}")
    for seq in report.resumed:
        click.echo(f"  resumed from the router's own snapshot at position {seq}")
    if report.not_checkable:
        click.echo(
            f"{count(report.not_checkable, 'decision')} cannot be checked: "
            f"the router that made them had lost {count(report.lost, 'event')}."
        )
    for difference in report.differences:
        click.echo(f"  {plain(difference.sentence)}")
    for policy, reason in report.unknown_policies.items():
        click.echo(f"  policy {plain(policy)} could not be asked again: {plain(reason)}")
    if report.refused:
        complain(report.refused, "Only the log of one router, whole from its first event, can be verified.", BAD_NEWS)
    elif not report.decisions:
        click.echo("There is no decision in this log yet.")
    elif report.ok:
        which = "Every other" if report.not_checkable else "Every"
        click.echo(f"{which} recorded decision comes out the same, bit for bit.")
    else:
        click.echo(f"{count(asked - report.identical, 'decision')} could not be reproduced.")
