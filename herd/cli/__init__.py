"""Every command of `herd` by its place in the help: one file and one line for each."""

import click

from herd.cli.events import events
from herd.cli.replay import replay
from herd.cli.serve import serve
from herd.cli.settings import settings
from herd.cli.status import status
from herd.cli.traces import traces
from herd.cli.up import up

COMMANDS: tuple[click.Command, ...] = (
    up,
    serve,
    status,
    traces,
    events,
    replay,
    settings,
)
