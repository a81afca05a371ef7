"""On each machine of the fleet one command suffices: it finds the router, and an engine, by itself."""

from typing import Any

import click

from herd import __version__
from herd.cli.options import node_settings
from herd.cli.program import BAD_NEWS, OK, Program, notes


@click.group(
    "herd-node",
    cls=Program,
    invoke_without_command=True,
    subcommand_metavar="",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=notes(
        "herd-node",
        "herd-node --router-url http://192.168.1.20:11435 --node-id studio",
        codes={
            OK: "it was told to stop, and left in good order",
            BAD_NEWS: "it could not start, or was told twice and left at once",
        },
    ),
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.option("--node-id", help="Name of this machine in the fleet.  [default: its host name]")
@click.option("--router-url", help="Address of the router.  [default: found by mDNS]")
@click.option("--ollama-host", help="Address of Ollama on this machine.  [default: http://localhost:11434]")
@click.option(
    "--engine",
    type=click.Choice(["auto", "ollama", "embedded"]),
    help="auto: Ollama where it answers, else the built-in llama.cpp with a small model.  [default: auto]",
)
@click.option("--data-dir", help="Directory of log files and downloads.  [default: ~/.fleet-manager]")
@click.option(
    "--log-level",
    "console_log_level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    help="Level of the console; the log file has its own, FLEET_NODE_LOG_LEVEL.  [default: INFO]",
)
def main(**flags: Any) -> int:
    """Make this machine a node of the fleet: report to the router what it has, until Ctrl-C or SIGTERM.

    It then takes no new work, waits until running requests are finished, and leaves. A second Ctrl-C stops it at once.
    """
    settings = node_settings(**flags).values
    from herd.node.start import serve  # noqa: PLC0415 - the HTTP client costs 0.2 s, which --help need not wait for

    return OK if serve(settings) else BAD_NEWS


if __name__ == "__main__":
    main()
