"""A flag means the same in every command that has it, and beats the environment, which beats the env file."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from herd import settings
from herd.cli.program import warn
from herd.settings import ENV_FILE_VARIABLE, NODE_PREFIX, ROUTER_PREFIX, Loaded, NodeSettings, RouterSettings

C = TypeVar("C", bound=Callable[..., Any])

#: Addresses that mean "every interface": good to listen on, not to connect to.
WILDCARDS = ("0.0.0.0", "::", "")

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
data_dir = click.option("--data-dir", help="Directory of the log.  [default: ~/.fleet-manager]")
url = click.option("--url", help="Address of the router.  [default: FLEET_HOST and FLEET_PORT on this machine]")

FLAGS = (
    click.option("--host", help="Address to listen on.  [default: 0.0.0.0]"),
    click.option("--port", metavar="NUMBER", help="Port to listen on.  [default: 11435]"),
    data_dir,
    click.option("--policy", help="Routing policy.  [default: classic]"),
    click.option("--mdns/--no-mdns", default=None, help="Announce the router on the local network.  [default: yes]"),
    click.option(
        "--log-level",
        "console_log_level",
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
        help="Level of the console; the log file has its own, FLEET_LOG_LEVEL.  [default: INFO]",
    ),
)


def router_flags(command: C) -> C:
    """Give a command the flags that say how the router runs."""
    for flag in reversed(FLAGS):
        command = flag(command)
    return command


def router_settings(**flags: Any) -> Loaded[RouterSettings]:
    """Return the router's settings as these flags, the environment and the env file make them.

    Raises `SettingsError` for what has no sense, a policy that does not exist included.
    """
    file = settings.read_env_file(settings.env_file())
    loaded = settings.load(RouterSettings, ROUTER_PREFIX, flags=flags, file=file)
    if loaded.origins["policy"] != "default":
        from herd.routing import policy_named  # noqa: PLC0415 - hardly anybody chooses one, and others need not wait

        policy_named(loaded.values.policy)
    return loaded


def node_settings(**flags: Any) -> Loaded[NodeSettings]:
    """Return the agent's settings as these flags, the environment and the env file make them."""
    return settings.load(NodeSettings, NODE_PREFIX, flags=flags, file=settings.read_env_file(settings.env_file()))


def unknown_variables() -> dict[str, str]:
    """Return FLEET_ variables, set or in the env file, that nothing reads, each with the likeliest one meant."""
    return settings.unknown({*os.environ, *settings.read_env_file(settings.env_file())} - {ENV_FILE_VARIABLE})


def warn_of_unknown_variables() -> None:
    """Tell the user of settings that have no effect."""
    for name, meant in unknown_variables().items():
        warn(f"{name} is not a setting of this release and has no effect", f"Did you mean {meant}?" if meant else "")


def router_url(given: str | None) -> str:
    """Return the address of the router: as given, or where the settings say that it listens, seen from this machine."""
    if not given:
        return url_of(router_settings().values)
    address = given.rstrip("/")
    if "//" in address:
        return address
    return f"http://{address}" if ":" in address or "/" in address else f"http://{address}:{RouterSettings().port}"


def url_of(values: RouterSettings) -> str:
    """Return the address at which this machine reaches a router with these settings."""
    host = "127.0.0.1" if values.host in WILDCARDS else values.host
    return f"http://[{host}]:{values.port}" if ":" in host else f"http://{host}:{values.port}"


def variables(loaded: Loaded[RouterSettings] | Loaded[NodeSettings], prefix: str) -> dict[str, str]:
    """Return the variables that make another process take the same flags; what it finds by itself is left out."""
    values = msgspec.structs.asdict(loaded.values)
    given = {name: values[name] for name, origin in loaded.origins.items() if origin == "flag"}
    return {f"{prefix}{name.upper()}": str(value) for name, value in given.items()}
