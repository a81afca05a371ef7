"""The router is what users start first, so it needs no argument."""

from typing import Any

import click

from herd.cli.options import router_flags, router_settings, warn_of_unknown_variables
from herd.cli.program import BAD_NEWS, OK, notes


@click.command(
    epilog=notes(
        "herd serve --port 11500 --data-dir /srv/herd",
        codes={OK: "the router was asked to stop", BAD_NEWS: "the router could not start"},
    )
)
@router_flags
def serve(**flags: Any) -> int:
    """Start the router: one address for all your Ollama machines.

    It listens until Ctrl-C or SIGTERM. On each machine with models run `herd-node`, which finds the router by itself.
    """
    loaded = router_settings(**flags)
    warn_of_unknown_variables()
    from herd.app import serve as run  # noqa: PLC0415 - the web framework costs half a second; --help needs none of it

    return run(loaded)
