"""A setting that does not do what somebody thinks has usually been overridden elsewhere: this shows where."""

from typing import Any

import click
import msgspec

from herd.cli.options import (
    json_flag,
    node_settings,
    router_flags,
    router_settings,
    unknown_variables,
    warn_of_unknown_variables,
)
from herd.cli.output import Column, print_json, print_table
from herd.cli.program import BAD_NEWS, OK, notes
from herd.settings import (
    NODE_PREFIX,
    ROUTER_PREFIX,
    Loaded,
    NodeSettings,
    Origin,
    RouterSettings,
    catalogue,
    env_file,
)

COLUMNS = (Column("variable", 0), Column("value", 0), Column("from", 0), Column("meaning", 1, folds=True))


class Effective(msgspec.Struct, frozen=True, kw_only=True):
    """A setting as it is in force."""

    name: str
    variable: str
    value: Any
    origin: Origin
    default: Any
    about: str


@click.command(
    epilog=notes(
        "herd settings",
        "FLEET_PORT=11500 herd settings --json",
        codes={OK: "every FLEET_ variable is known", BAD_NEWS: "a FLEET_ variable is set that nothing reads"},
    )
)
@router_flags
@json_flag
def settings(as_json: bool, **flags: Any) -> int:
    """Show every setting, its value, and where the value comes from.

    A flag beats the environment, which beats the env file (~/.fleet-manager/env, or FLEET_ENV_FILE), which beats the
    default. The router's variables begin with FLEET_, the node agent's with FLEET_NODE_. Flags of `herd serve` are
    taken as it would take them.
    """
    router = effective(router_settings(**flags), RouterSettings, ROUTER_PREFIX)
    node = effective(node_settings(), NodeSettings, NODE_PREFIX)
    strange = unknown_variables()
    if as_json:
        print_json({"env_file": str(env_file()), "router": router, "node": node, "unknown": strange})
    else:
        for title, found in (("herd", router), ("herd-node", node)):
            click.echo(f"Settings of {title}:\n")
            print_table(COLUMNS, [(s.variable, shown(s), s.origin, s.about) for s in found])
            click.echo()
        click.echo(f"Env file: {env_file()}")
        warn_of_unknown_variables()
    return BAD_NEWS if strange else OK


def effective(
    loaded: Loaded[RouterSettings] | Loaded[NodeSettings], kind: type[msgspec.Struct], prefix: str
) -> list[Effective]:
    """Return the settings in force, in the order of their definition."""
    values = msgspec.structs.asdict(loaded.values)
    return [
        Effective(
            name=setting.name,
            variable=setting.variable,
            value=values[setting.name],
            origin=loaded.origins[setting.name],
            default=setting.default,
            about=setting.about,
        )
        for setting in catalogue(kind, prefix)
    ]


def shown(setting: Effective) -> str:
    """Return a value as one would write it in the env file."""
    return str(setting.value).lower() if isinstance(setting.value, bool) else str(setting.value)
