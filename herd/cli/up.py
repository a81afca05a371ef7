"""Who tries Herd for the first time wants one command, a real answer, and to see why it came from there."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

from events.clock import SystemClock
from herd.cli import options
from herd.cli.ask import ask
from herd.cli.children import Children, children
from herd.cli.greeting import greet
from herd.cli.program import BAD_NEWS, OK, Unreachable, notes
from herd.cli.status import parse
from herd.errors import StartupError
from herd.settings import NODE_PREFIX, ROUTER_PREFIX, Loaded, NodeSettings, RouterSettings

PROMPT = "What is the capital of France? Answer in one short sentence."

#: How long the router may take to answer its first question, seconds.
ROUTER_WAIT_S = 30.0
#: Pause between two looks at something that will come, seconds.
POLL_S = 0.1
#: How long a process may take to stop beyond what its settings grant to running requests, seconds.
STOP_WAIT_S = 10.0


@click.command(
    epilog=notes(
        "herd up",
        "herd up --port 11500 --data-dir /tmp/herd --engine embedded --once",
        codes={
            OK: "stopped with Ctrl-C, or with --once: the first answer came",
            BAD_NEWS: "it could not start, no answer came, or a part of it ended by itself",
        },
    )
)
@options.router_flags
@click.option("--engine", type=click.Choice(["auto", "ollama", "embedded"]), help="What answers.  [default: auto]")
@click.option("--prompt", default=PROMPT, help="The first question.")
@click.option("--once", is_flag=True, help="Stop after the first answer.")
def up(engine: str | None, prompt: str, once: bool, **flags: Any) -> int:
    """Start a router and a node here, and ask a first question.

    Both run until Ctrl-C. Where Ollama runs on this machine, it answers. Where it does not, the agent brings a small
    model and an engine of its own, which it downloads once.
    """
    router = options.router_settings(**flags)
    options.warn_of_unknown_variables()
    url = options.url_of(router.values)
    must_be_free(url, router.values)
    try:
        with children(str(router.values.home / "logs")) as kept:
            began_s = SystemClock().now() / 1e9
            start(kept, url, router, node_settings(router, engine, url))
            answered = greet(url, prompt, kept.check, since_s=began_s)
            if not once:
                show_addresses(url, router)
                while True:
                    kept.check()
                    time.sleep(POLL_S)
    except KeyboardInterrupt:
        return OK  # the way to end it
    return OK if answered else BAD_NEWS


def must_be_free(url: str, values: RouterSettings) -> None:
    """Raise `StartupError` if somebody answers at the router's address already."""
    if values.port == 0:
        raise click.UsageError("herd up needs a port that clients can know, not 0")
    try:
        parse(ask(url, "/fleet/status"), url)
    except Unreachable:
        return  # free, or another program's: then the router itself says so
    raise StartupError(
        f"a router runs at {url} already", hint=f"See `herd status --url {url}`, or choose another port with --port."
    )


def start(kept: Children, url: str, router: Loaded[RouterSettings], node: Loaded[NodeSettings]) -> None:
    """Start the router, and when it answers the agent. Raises `StartupError` if it does not."""
    quiet = {
        f"{prefix}CONSOLE_LOG_LEVEL": "WARNING"  # what the user should read here is the answer
        for prefix, loaded in ((ROUTER_PREFIX, router), (NODE_PREFIX, node))
        if loaded.origins["console_log_level"] == "default"
    }
    environment = os.environ | quiet | options.variables(router, ROUTER_PREFIX) | options.variables(node, NODE_PREFIX)
    grace_s = router.values.shutdown_grace + STOP_WAIT_S
    kept.start("the router", "herd.cli.herd", ["serve"], environment, grace_s=grace_s)
    deadline = time.monotonic() + ROUTER_WAIT_S
    while not answers(url):
        kept.check()
        if time.monotonic() > deadline:
            raise StartupError(f"the router did not answer at {url} within {ROUTER_WAIT_S:g} s")
        time.sleep(POLL_S)
    grace_s = node.values.drain_timeout + STOP_WAIT_S
    kept.start("the node agent", "herd.cli.herd_node", [], environment, grace_s=grace_s)


def answers(url: str) -> bool:
    """Whether the router answers."""
    try:
        ask(url, "/healthz")
    except Unreachable:
        return False
    return True


def node_settings(router: Loaded[RouterSettings], engine: str | None, url: str) -> Loaded[NodeSettings]:
    """Return the settings of the agent beside this router: a directory chosen for one is meant for both."""
    chosen = None if router.origins["data_dir"] == "default" else router.values.data_dir
    own = options.node_settings()
    level = router.values.console_log_level if router.origins["console_log_level"] == "flag" else None
    return options.node_settings(
        router_url=url,
        engine=engine,
        data_dir=chosen if own.origins["data_dir"] == "default" else None,
        console_log_level=level,
    )


def show_addresses(url: str, router: Loaded[RouterSettings]) -> None:
    """Print where everything is."""
    herd = program()
    flags = {name for name, origin in router.origins.items() if origin == "flag"}
    where = f" --url {url}" if flags & {"host", "port"} else ""
    data = f" --data-dir {router.values.data_dir}" if "data_dir" in flags else ""
    click.echo(f"""
{click.style("Addresses", bold=True)}
  Ollama API   {url}
  OpenAI API   {url}/v1
  fleet        {url}/fleet/status
  decisions    {url}/dashboard/api/traces
  event log    {router.values.database}
  log files    {router.values.home / "logs"}

{click.style("In another window", bold=True)}
  {herd} status{where}
  {herd} traces{where}
  {herd} events tail{data}
  {herd} replay verify{data}

On every other machine with models: herd-node. Ctrl-C stops what was started here.""")


def program() -> str:
    """Return what to type for this program, which may be in an environment that is not on the PATH."""
    if shutil.which("herd"):
        return "herd"
    path = Path(sys.executable).with_name("herd")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
