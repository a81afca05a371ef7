"""The log is all that remembers, so people must be able to look at it, follow it, take it along and trust it."""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click
import msgspec

from events.recorded import Recorded
from events.types import Event
from herd.cli import options
from herd.cli.output import count, indented, local_time, plain, print_json, terminal_columns, width
from herd.cli.program import BAD_NEWS, OK, UNREACHABLE, Unreachable, notes

if TYPE_CHECKING:
    from events.sqlite import Reader
    from projections.runner import Verification

#: Pause of `tail` between two looks at the file, seconds.
POLL_S = 0.5

#: Fields of an object that a line for a person shows; a larger one is only counted, and whole with --json.
FIELDS_MAX = 8
#: Words of a list that a line for a person shows, together; longer lists are only counted.
WORDS_MAX_CHARACTERS = 60

#: How far the details of an event stand from the left where they do not fit its first line.
DETAILS_INDENT = 8

#: Every event type by its tag.
TYPES: dict[str, type[Event]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Event)}

#: How the streams of events are called: `Event.stream` makes them.
STREAMS = "node/<name>, request/<id>, router"


def stream_of(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """Return the name of a stream; a word that can be none would only find nothing. Raises `click.BadParameter`."""
    if name is None or name == "router" or name.startswith(("node/", "request/")):
        return name
    raise click.BadParameter(f"{name!r} is none of {STREAMS}")


FILTERS = (
    click.option("--type", "tags", multiple=True, metavar="TYPE", help="Only this type, such as request.finished, or \
all of a subject, such as request. May be given several times."),
    click.option("--stream", callback=stream_of, help=f"Only what happened to this: {STREAMS}."),
    options.data_dir,
)  # fmt: skip


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags that choose events."""
    for flag in reversed(FILTERS):
        command = flag(command)
    return command


@click.group(
    epilog=notes(
        "herd events list --type request.finished",
        "herd events tail",
        "herd events export --output history.jsonl",
        "herd events verify",
    )
)
def events() -> None:
    """Look into the log: list, follow, export or verify it.

    All of them read the database file, whether or not the router runs, and never write to it.
    """


@events.command(
    "list",
    epilog=notes(
        "herd events list",
        "herd events list --type route.chosen --type request.finished --limit 10",
        "herd events list --stream node/ash --after 1000 --json",
        codes={OK: "there is a list, if an empty one", UNREACHABLE: "the log could not be opened"},
    ),
)
@filters
@click.option("--after", type=click.IntRange(0), help="Begin after this position, instead of showing the newest.")
@click.option("--until", type=click.IntRange(0), help="Only events up to this position.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many events.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, as `export` does.")
def list_events(
    *,
    tags: tuple[str, ...],
    stream: str | None,
    data_dir: str | None,
    after: int | None,
    until: int | None,
    limit: int,
    as_json: bool,
) -> int:
    """Show the newest events, or those after a position.

    The position of an event is its number in the log, which its line begins with. The newest stand last.
    """
    types = types_of(tags)
    with opened(data_dir) as reader:
        newest = after is None
        found = reader.read(after or 0, until=until, types=types, stream=stream, backwards=newest)
        shown = list(islice(found, limit))
    for recorded in reversed(shown) if newest else shown:
        show(recorded, as_json)
    if not shown and not as_json:
        click.echo("No event matches.", err=True)
    return OK


@events.command(
    epilog=notes(
        "herd events tail",
        "herd events tail --type request.finished --json",
        codes={OK: "stopped with Ctrl-C", UNREACHABLE: "the log could not be opened"},
    )
)
@filters
@click.option("-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="Begin with so many events.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, as `export` does.")
def tail(tags: tuple[str, ...], stream: str | None, data_dir: str | None, lines: int, as_json: bool) -> int:
    """Show events as they are stored, until Ctrl-C."""
    types = types_of(tags)
    try:
        with opened(data_dir) as reader:
            for recorded in followed(reader, types, stream, lines=lines, pause=lambda: time.sleep(POLL_S)):
                show(recorded, as_json)
    except KeyboardInterrupt:
        pass  # the way to end it
    return OK


def followed(
    reader: "Reader", types: list[type[Event]] | None, stream: str | None, *, lines: int, pause: Callable[[], object]
) -> Iterator[Recorded]:
    """Yield the last `lines` events that match, then those stored later, without end; `pause` waits between looks."""
    seen = reader.head
    yield from reversed(list(islice(reader.read(until=seen, types=types, stream=stream, backwards=True), lines)))
    while True:
        pause()
        head = reader.head
        yield from reader.read(seen, until=head, types=types, stream=stream)
        seen = head


@events.command(
    epilog=notes(
        "herd events export --output history.jsonl",
        "herd events export --type request | gzip > requests.jsonl.gz",
        codes={OK: "everything was written", UNREACHABLE: "the log could not be opened, or the file not be written"},
    )
)
@filters
@click.option("--after", type=click.IntRange(0), default=0, help="Only events after this position.")
@click.option("--until", type=click.IntRange(0), help="Only events up to this position.")
@click.option("--format", "form", type=click.Choice(["jsonl"]), default="jsonl", show_default=True, help="Form.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File instead of stdout.")
def export(
    *,
    tags: tuple[str, ...],
    stream: str | None,
    data_dir: str | None,
    after: int,
    until: int | None,
    form: str,
    output: Path | None,
) -> int:
    """Write events as JSON lines, in the order of the log.

    A file appears under its name only when it is complete. `herd replay verify --log FILE` reads it.
    """
    del form  # there is one
    types = types_of(tags)
    with opened(data_dir) as reader:
        found = reader.read(after, until=until, types=types, stream=stream)
        written = write(found, sys.stdout.buffer) if output is None else write_file(found, output)
    click.echo(f"{count(written, 'event')} exported", err=True)
    return OK


def write_file(found: Iterable[Recorded], output: Path) -> int:
    """Write events to a file that gets its name when it is complete, and return how many. Raises `Unreachable`."""
    if output.exists() and not output.is_file():  # a device or a pipe, whose place a file must not take
        part = target = output
    else:
        target = output.resolve()
        part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as file:
            written = write(found, file)
        if part != target:
            part.replace(target)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unreachable(f"cannot write {part}: {error.strerror or error}") from error
    return written


def write(found: Iterable[Recorded], file: Any) -> int:
    """Write events as JSON lines and return how many."""
    from events import jsonl  # noqa: PLC0415 - see `opened`

    written = 0
    for written, recorded in enumerate(found, start=1):  # noqa: B007 - the last number is the result
        file.write(jsonl.dump(recorded) + b"\n")
    file.flush()
    return written


@events.command(
    epilog=notes(
        "herd events verify",
        "herd events verify --data-dir /srv/herd --json",
        codes={
            OK: "what is kept is what the log says",
            BAD_NEWS: "something kept differs from the log, or the log has a hole",
            UNREACHABLE: "the log could not be opened",
        },
    )
)
@options.data_dir
@options.json_flag
def verify(data_dir: str | None, as_json: bool) -> int:
    """Compare what is kept with the whole log.

    Builds every view anew from the first event on, and compares it with the snapshot and the request traces.
    """
    from projections.runner import verify_file  # noqa: PLC0415 - see `opened`

    result = verify_file(log_path(data_dir))
    if as_json:
        print_json({"ok": result.ok} | msgspec.structs.asdict(result))
    else:
        show_verification(result)
    return OK if result.ok else BAD_NEWS


def show_verification(result: "Verification") -> None:
    """Print what a verification found, for a person."""
    snapshot = f"the snapshot at {result.snapshot_seq}" if result.snapshot_seq is not None else "no snapshot"
    click.echo(
        f"{count(result.events, 'event')} read up to position {result.seq}, "
        f"compared with {snapshot} and {count(result.rows, 'trace')}"
    )
    for seam in result.seams:
        click.echo(plain(f"  {seam.sentence}"))
    for sentence in result.not_comparable:
        click.echo(plain(f"  {sentence}"))
    for found in result.differences:
        click.echo(plain(f"  {found.part} {found.where}: the log says {found.expected}, kept is {found.found}"))
    if result.ok:
        click.echo(
            "A rebuild equals what is kept." if not result.not_comparable else "All that is comparable is equal."
        )
    else:
        click.echo(f"{count(result.differences_found, 'difference')}.")


@contextmanager
def opened(data_dir: str | None) -> Generator["Reader"]:
    """Open the log for reading. Raises `Unreachable` when there is none, `StoreError` when it is not Herd's."""
    from events.sqlite import open_readonly  # noqa: PLC0415 - loads the store, which --help need not wait for

    with closing(open_readonly(log_path(data_dir))) as reader:
        yield reader


def log_path(data_dir: str | None) -> Path:
    """Return the path of the log's database. Raises `Unreachable` when it does not exist."""
    database = options.router_settings(data_dir=data_dir).values.database
    if not database.exists():
        raise Unreachable(
            f"there is no log at {database}", hint="Start the router with `herd`, or say where its log is: --data-dir."
        )
    return database


def types_of(tags: tuple[str, ...]) -> list[type[Event]] | None:
    """Return the event types that tags and subjects name; None for no tags at all, which means every type."""
    for tag in tags:
        if not any(matches(name, tag) for name in TYPES):
            raise click.UsageError(f"there is no event type {tag!r}; there are {', '.join(sorted(TYPES))}")
    return [kind for name, kind in TYPES.items() if any(matches(name, tag) for tag in tags)] if tags else None


def matches(name: str, tag: str) -> bool:
    """Whether a tag such as `request.finished` is named by itself or by its subject."""
    return name == tag or name.startswith(f"{tag.rstrip('.')}.")


def show(recorded: Recorded, as_json: bool) -> None:
    """Print one event: as it is exported, or on one line for a person."""
    from events import jsonl  # noqa: PLC0415 - see `opened`

    if as_json:
        click.echo(jsonl.dump(recorded))
        return
    for line in sentence(recorded, terminal_columns()):
        click.echo(line)


def sentence(recorded: Recorded, width_columns: int | None) -> list[str]:
    """Return an event as one line, or where the terminal is too narrow for that, folded between words."""
    fields: dict[str, Any] = msgspec.to_builtins(recorded.event)
    tag = fields.pop("type")
    subject, _, name = recorded.stream.partition("/")
    if name:
        fields.pop(subject, None)
    head = f"{recorded.seq:>6}  {local_time(recorded.at)}  "
    details = plain("  ".join([recorded.stream, *(f"{field}={brief(value)}" for field, value in fields.items())]), "")
    if width_columns is None or width(f"{head}{tag}  {details}") <= width_columns:
        return [f"{head}{click.style(tag, bold=True)}  {details}"]
    return [head + click.style(tag, bold=True), *indented(details, width_columns, DETAILS_INDENT)]


def brief(value: Any) -> str:
    """Return a field in few characters: long lists and objects by their length, text quoted where it has gaps."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        words = ",".join(items) if all(isinstance(item, str) for item in items) else ""
        return words if words and len(words) <= WORDS_MAX_CHARACTERS else f"[{len(items)}]"
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if len(fields) > FIELDS_MAX:
            return f"{{{len(fields)}}}"
        return "{" + " ".join(f"{name}={brief(field)}" for name, field in fields.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}"' if isinstance(value, str) and (not text or " " in text) else text
