"""Who asks why a request was slow must not need a running router, since that may be the reason."""

from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from events.store import StoreUnavailable
from herd.cli import options
from herd.cli.ask import ask, not_herd
from herd.cli.output import Column, duration, local_time, number, print_json, print_table
from herd.cli.program import OK, UNREACHABLE, Unreachable, notes
from projections.traces import Status, Trace

#: The router returns no more at once.
LIMIT_MAX = 1000
STATUSES = get_args(Status)

COLUMNS = (
    Column("time", 0),
    Column("request", 5),
    Column("status", 1),
    Column("model", 2),
    Column("node", 3),
    Column("score", 7, right=True),
    Column("first token", 6, right=True),
    Column("total", 4, right=True),
    Column("tokens in", 9, right=True),
    Column("tokens out", 8, right=True),
    Column("retries", 10, right=True),
)


class Traces(msgspec.Struct, frozen=True):
    """The body of `GET /dashboard/api/traces`."""

    traces: list[Trace]


@click.command(
    epilog=notes(
        "herd traces",
        "herd traces --status failed --limit 100",
        "herd traces --node ash --model llama3.2:3b --json",
        codes={OK: "there is a list, if an empty one", UNREACHABLE: "neither the router nor its log could be read"},
    )
)
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=20, show_default=True, help="Newest rows.")
@click.option("--status", type=click.Choice(STATUSES), help="Only requests that ended so.")
@click.option("--model", help="Only this model, by the name in the table.")
@click.option("--node", help="Only this node.")
@options.url
@options.data_dir
@options.json_flag
def traces(url: str | None, data_dir: str | None, as_json: bool, limit: int, **filters: Any) -> int:
    """Show the newest requests: who answered, and how fast.

    Asks the router, or with --data-dir, or where no router runs on this machine, reads the log's database itself.
    """
    if url is not None and data_dir is not None:
        raise click.UsageError("--url and --data-dir exclude each other")
    found = recent(url, data_dir, limit=limit, **filters)
    if as_json:
        print_json({"traces": found})
        return OK
    if not found:
        click.echo("No request matches.")
        return OK
    print_table(COLUMNS, [row(trace) for trace in found], [trace.error_message or "" for trace in found])
    return OK


def recent(url: str | None, data_dir: str | None, **query: Any) -> list[Trace]:
    """Return the newest traces, newest first, from the router or from the file. Raises `Unreachable`."""
    if data_dir is not None:
        return from_file(options.router_settings(data_dir=data_dir).values.database, **query)
    address = options.router_url(url)
    try:
        body = ask(address, "/dashboard/api/traces", query)
    except Unreachable:
        database = options.router_settings().values.database
        if url is not None or not database.exists():
            raise
        return from_file(database, **query)
    try:
        return msgspec.json.decode(body, type=Traces).traces
    except msgspec.DecodeError as error:
        raise not_herd(address, "answered, but not with traces") from error


def from_file(database: Path, **query: Any) -> list[Trace]:
    """Return the newest traces in the database. Raises `Unreachable` when it is not there or not Herd's."""
    from projections.tables import TraceTable  # noqa: PLC0415 - the store, which --help and a running router don't need

    if not database.exists():
        raise Unreachable(
            f"there is no log at {database}", hint="Start the router with `herd`, or say where its log is: --data-dir."
        )
    try:
        return TraceTable(database).recent(**query)
    except (StoreUnavailable, msgspec.ValidationError) as error:
        raise Unreachable(
            f"cannot read the traces in {database}: {error}", hint="Is this a log of Herd? --data-dir chooses another."
        ) from error


def row(trace: Trace) -> tuple[str, ...]:
    """Return a trace's line of the table."""
    return (
        local_time(trace.timestamp)[len("2026-") :],  # newest first: nobody wonders about the year
        trace.request_id,
        trace.status,
        trace.model,
        trace.node_id or "-",
        number(trace.score, 1),
        duration(trace.time_to_first_token_ms),
        duration(trace.latency_ms),
        number(trace.prompt_tokens),
        number(trace.completion_tokens),
        str(trace.retry_count),
    )
