"""The first question of anyone who runs a fleet: who is there, what do they hold, what do they do."""

import click
import msgspec

from herd.cli import options
from herd.cli.ask import ask, not_herd
from herd.cli.output import Column, count, number, print_json, print_table
from herd.cli.program import BAD_NEWS, OK, UNREACHABLE, notes


class Cpu(msgspec.Struct, frozen=True):
    """Part of a node's status."""

    utilization_pct: float | None = None


class Memory(msgspec.Struct, frozen=True):
    """Part of a node's status, in GiB."""

    total_gb: float = 0.0
    used_gb: float = 0.0
    pressure: str = "normal"


class Disk(msgspec.Struct, frozen=True):
    """Part of a node's status, in GiB."""

    available_gb: float = 0.0


class Engine(msgspec.Struct, frozen=True):
    """Part of a node's status: what answers there."""

    dialect: str = "ollama"
    name: str = "Ollama"
    version: str = ""
    up: bool | None = None


class LoadedModel(msgspec.Struct, frozen=True):
    """A model in a node's memory."""

    name: str


class Models(msgspec.Struct, frozen=True):
    """Part of a node's status: what it can serve, and what it does."""

    models_loaded: list[LoadedModel] = []
    models_available: list[str] = []
    models_available_sizes: dict[str, float] = {}
    requests_active: int = 0


class Node(msgspec.Struct, frozen=True):
    """One node in `GET /fleet/status`, as far as commands need it."""

    node_id: str
    status: str
    ollama_url: str = ""
    engine: Engine = Engine()
    cpu: Cpu | None = None
    memory: Memory | None = None
    disk: Disk | None = None
    ollama: Models = Models()
    last_heartbeat: float | None = None
    """When the router last heard of it, seconds since the epoch."""
    last_heartbeat_age_s: float | None = None


class Totals(msgspec.Struct, frozen=True):
    """The fleet in four numbers."""

    nodes_total: int
    nodes_online: int
    models_loaded: int
    requests_active: int


class Queue(msgspec.Struct, frozen=True):
    """The queue of one model on one node."""

    pending: int = 0
    in_flight: int = 0
    completed: int = 0
    failed: int = 0


class FleetStatus(msgspec.Struct, frozen=True):
    """The body of `GET /fleet/status`, as far as commands need it."""

    fleet: Totals
    nodes: list[Node]
    queues: dict[str, Queue]


@click.command(
    epilog=notes(
        "herd status",
        "herd status --url http://router.local:11435 --json",
        codes={OK: "at least one node is online", BAD_NEWS: "no node is online", UNREACHABLE: "no router answers"},
    )
)
@options.url
@options.json_flag
def status(url: str | None, as_json: bool) -> int:
    """Show the fleet: nodes, models in memory, queues."""
    address = options.router_url(url)
    body = ask(address, "/fleet/status")
    found = parse(body, address)
    if as_json:
        print_json(body)
    else:
        show(found)
    return OK if found.fleet.nodes_online else BAD_NEWS


def parse(body: bytes, address: str) -> FleetStatus:
    """Return the status in a body. Raises `Unreachable` for what is none."""
    try:
        return msgspec.json.decode(body, type=FleetStatus)
    except msgspec.DecodeError as error:
        raise not_herd(address, "answered, but not with the status of a fleet") from error


NODES = (
    Column("node", 0),
    Column("status", 0),
    Column("engine", 4),
    Column("cpu", 3, right=True),
    Column("memory", 2),
    Column("disk free", 7, right=True),
    Column("in memory", 1, folds=True),
    Column("on disk", 6, right=True),
    Column("last seen", 5, right=True),
)
QUEUES = (
    Column("queue", 0),
    Column("waiting", 0, right=True),
    Column("running", 0, right=True),
    Column("done", 1, right=True),
    Column("failed", 2, right=True),
)


def show(found: FleetStatus) -> None:
    """Print the status for a person."""
    fleet = found.fleet
    click.echo(
        f"{fleet.nodes_online:,} of {count(fleet.nodes_total, 'node')} online, "
        f"{count(fleet.models_loaded, 'model')} in memory, {count(fleet.requests_active, 'request')} running"
    )
    if not found.nodes:
        click.echo("Run `herd-node` on each machine that has models; it finds the router by itself.")
        return
    click.echo()
    print_table(NODES, [row(node) for node in found.nodes])
    if found.queues:
        click.echo()
        print_table(
            QUEUES,
            [(name, *map(str, (q.pending, q.in_flight, q.completed, q.failed))) for name, q in found.queues.items()],
        )


def row(node: Node) -> tuple[str, ...]:
    """Return a node's line of the table."""
    engine = f"{node.engine.name} {node.engine.version}".strip() or "-"
    pressure = f" ({node.memory.pressure})" if node.memory and node.memory.pressure != "normal" else ""
    return (
        node.node_id,
        node.status,
        f"{engine} (down)" if node.engine.up is False else engine,
        number(node.cpu.utilization_pct if node.cpu else None, unit=" %"),
        f"{node.memory.used_gb:.1f} of {node.memory.total_gb:.1f} GiB{pressure}" if node.memory else "-",
        number(node.disk.available_gb if node.disk else None, unit=" GiB"),
        ", ".join(model.name for model in node.ollama.models_loaded) or "-",
        count(len(node.ollama.models_available), "model"),
        number(node.last_heartbeat_age_s, 1, " s ago"),
    )
