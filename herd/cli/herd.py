"""Users of Ollama routers type `herd` and expect a router, so the program without a command is one."""

from typing import Any

import click

from herd import __version__
from herd.cli import COMMANDS
from herd.cli.options import router_flags
from herd.cli.program import Program, notes
from herd.cli.serve import serve


@click.group(
    "herd",
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=notes("herd", "herd --port 11500", "herd up"),
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@router_flags
@click.pass_context
def main(context: click.Context, **flags: Any) -> int:
    """One address for all your Ollama machines. Without a command: start the router, as `herd serve` does."""
    if context.invoked_subcommand is None:
        return context.invoke(serve, **flags)
    misplaced = [parameter for parameter in context.command.params if flags.get(parameter.name or "") is not None]
    if misplaced:
        flag, name = misplaced[0].opts[0], context.invoked_subcommand
        raise click.UsageError(f"{flag} before {name} would have no effect; `herd {name} --help` shows its own flags")
    return 0


for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
