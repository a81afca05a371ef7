"""Who asks why a request was slow must not need a running router, since that may be the reason."""

from pathlib import Path
from typing import Any

import click
import msgspec

from herd.cli import options
from herd.cli.ask import ask, not_herd
from herd.cli.output import moment, number, plain, print_json, print_table
from herd.cli.program import OK, UNREACHABLE, Unreachable, notes
from projections.traces import Trace

#: The router returns no more at once.
LIMIT_MAX = 1000
STATUSES = ("completed", "failed", "retried", "client_disconnected", "incomplete", "no_output")


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
    """Show the newest requests: who answered, with what score, how fast.

    Asks the router, or with --data-dir, or where no router runs on this machine, reads the log's database itself.
    """
    found = recent(url, data_dir, limit=limit, **filters)
    if as_json:
        print_json({"traces": found})
        return OK
    if not found:
        click.echo("No request matches.")
        return OK
    print_table(
        ("time", "request", "status", "model", "node", "score", "first token", "total", "tokens", "retries"),
        [row(trace) for trace in found],
    )
    for trace in found:
        if trace.error_message:
            click.echo(f"{trace.request_id}: {plain(trace.error_message)}")
    return OK


def recent(url: str | None, data_dir: str | None, **query: Any) -> list[Trace]:
    """Return the newest traces, newest first, from the router or from the file. Raises `Unreachable`."""
    if data_dir is not None and url is None:
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
    from events.sqlite import driver  # noqa: PLC0415 - the store, which neither --help nor a running router needs
    from projections.tables import TraceTable  # noqa: PLC0415

    if not database.exists():
        raise Unreachable(
            f"there is no log at {database}", hint="Start the router with `herd`, or say where its log is: --data-dir."
        )
    try:
        return TraceTable(database).recent(**query)
    except (driver.Error, msgspec.ValidationError) as error:
        raise Unreachable(
            f"cannot read the traces in {database}: {error}", hint="Is this a log of Herd? --data-dir chooses another."
        ) from error


def row(trace: Trace) -> tuple[str, ...]:
    """Return a trace's line of the table."""
    tokens = f"{number(trace.prompt_tokens)} + {number(trace.completion_tokens)}"
    return (
        moment(float(trace.timestamp)),
        trace.request_id,
        trace.status,
        trace.model,
        trace.node_id or "-",
        number(trace.score, 1),
        number(trace.time_to_first_token_ms, unit=" ms"),
        number(trace.latency_ms, unit=" ms"),
        tokens,
        str(trace.retry_count),
    )
