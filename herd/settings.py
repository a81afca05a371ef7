"""Every setting in one place, with its unit, its default and its origin: flag, environment, file or default."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import msgspec

from herd.errors import SettingsError

T = TypeVar("T", bound=msgspec.Struct)

Seconds = float
Origin = Literal["flag", "environment", "file", "default"]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

ROUTER_PREFIX = "FLEET_"
NODE_PREFIX = "FLEET_NODE_"
ENV_FILE_VARIABLE = "FLEET_ENV_FILE"

#: The shortest interval or timeout, seconds: with zero a loop would spin and a wait be over before it began.
MIN_S = 0.01
#: The longest, seconds: a day. It keeps out infinity, with which no timer can be set.
MAX_S = 86_400.0
#: The largest weight, in points: sums of them stay finite.
MAX_POINTS = 1e6

#: Types whose settings all have bounds, in plain words.
NOUNS: dict[type, str] = {int: "a whole number", float: "a number"}

#: What the name or address of a machine is made of.
HOST = re.compile(r"[A-Za-z0-9._:%-]+")


def about(text: str, *, ge: float | None = None, le: float | None = None) -> msgspec.Meta:
    """Describe a setting in one sentence, for `herd settings` and the docs, and bound it where a value has no sense."""
    return msgspec.Meta(description=text, ge=ge, le=le)


def seconds(text: str, *, ge: float = MIN_S) -> msgspec.Meta:
    """Describe a time, for which there is always a longest."""
    return about(text, ge=ge, le=MAX_S)


def points(text: str) -> msgspec.Meta:
    """Describe a number that enters a score: finite, and penalties are given without their sign."""
    return about(text, ge=0, le=MAX_POINTS)


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The router's settings; each is `FLEET_` plus its name in capitals."""

    host: Annotated[str, about("Address to listen on.")] = "0.0.0.0"
    port: Annotated[int, about("Port to listen on.", ge=0, le=65535)] = 11435
    data_dir: Annotated[str, about("Directory of the log database and the log files.")] = "~/.fleet-manager"
    heartbeat_interval: Annotated[Seconds, seconds("Seconds between two looks for silent nodes.")] = 5.0
    heartbeat_timeout: Annotated[Seconds, seconds("Seconds of silence after which a node is degraded.")] = 15.0
    heartbeat_offline: Annotated[Seconds, seconds("Seconds of silence after which a node is offline.")] = 30.0
    heartbeat_forget: Annotated[
        Seconds, about("Seconds of silence after which an offline node is forgotten.", ge=MIN_S, le=366 * MAX_S)
    ] = 86_400.0
    mdns: Annotated[bool, about("Announce the router on the local network.")] = True
    mdns_service_type: Annotated[str, about("Service type announced.")] = "_fleet-manager._tcp.local."
    mdns_service_name: Annotated[str, about("Instance name announced.")] = "Fleet Manager Router"
    policy: Annotated[str, about("Routing policy.")] = "classic"
    score_model_hot: Annotated[float, points("Points when the model is in memory.")] = 50.0
    score_model_warm: Annotated[float, points("Points when it left memory less than 30 minutes ago.")] = 30.0
    score_model_cold: Annotated[float, points("Points when it is on disk only.")] = 10.0
    score_memory_fit_max: Annotated[float, points("Points for ample memory.")] = 20.0
    score_queue_depth_max_penalty: Annotated[float, points("Largest penalty for waiting work.")] = 30.0
    score_queue_depth_penalty_per: Annotated[float, points("Penalty for each request waiting or running.")] = 6.0
    score_wait_time_max_penalty: Annotated[float, points("Largest penalty for the expected wait.")] = 25.0
    score_role_large_threshold_gb: Annotated[float, points("Models above this many GB are large.")] = 20.0
    score_role_small_threshold_gb: Annotated[float, points("Models below this many GB are small.")] = 8.0
    score_availability_trend_max: Annotated[float, points("Penalty for a machine that its owner needs.")] = 10.0
    score_context_fit_max: Annotated[float, points("Points or penalty for the loaded context length.")] = 15.0
    bandwidth_aware_scoring: Annotated[bool, about("Match model size to memory bandwidth.")] = True
    queue_penalty_bandwidth_normalize: Annotated[bool, about("A faster machine bears more waiting work.")] = True
    max_retries: Annotated[int, about("Further nodes to try before the first byte.", ge=0, le=100)] = 2
    max_queue: Annotated[int, about("Requests that may wait in the router; more get 503.", ge=0, le=1_000_000)] = 512
    body_max_mib: Annotated[int, about("Largest body of a request, MiB; a larger one gets 413.", ge=1, le=4096)] = 64
    queue_timeout: Annotated[Seconds, seconds("Seconds a request may wait for a free slot.", ge=0)] = 600.0
    connect_timeout: Annotated[Seconds, seconds("Seconds to reach a node.")] = 10.0
    read_timeout: Annotated[Seconds, seconds("Seconds a node may be silent, before and between chunks.")] = 600.0
    shutdown_grace: Annotated[Seconds, seconds("Seconds that running requests get when the router stops.", ge=0)] = 30.0
    durability: Annotated[
        Literal["full", "normal"],
        about("full: an event survives power loss once stored; normal: a crash only."),
    ] = "full"
    log_queue_max: Annotated[int, about("Events that may wait for the disk.", ge=1, le=10_000_000)] = 50_000
    log_level: Annotated[Level, about("Level of the JSON log file.")] = "DEBUG"
    console_log_level: Annotated[Level, about("Level of the console.")] = "INFO"

    def __post_init__(self) -> None:
        """Refuse a node that would be offline before it is degraded."""
        if self.heartbeat_offline <= self.heartbeat_timeout:
            raise SettingsError(
                f"FLEET_HEARTBEAT_OFFLINE is {self.heartbeat_offline:g} s, "
                f"not longer than FLEET_HEARTBEAT_TIMEOUT, which is {self.heartbeat_timeout:g} s",
                hint="A silent node is first degraded, then offline: raise the one or lower the other.",
            )

    @property
    def home(self) -> Path:
        """The data directory, expanded."""
        return Path(self.data_dir).expanduser()

    @property
    def database(self) -> Path:
        """The SQLite file of the log."""
        return self.home / "latency.db"


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's settings; each is `FLEET_NODE_` plus its name in capitals."""

    node_id: Annotated[str, about("Name of this machine in the fleet; default: its host name.")] = ""
    router_url: Annotated[str, about("Address of the router; empty: find it by mDNS.")] = ""
    ollama_host: Annotated[str, about("Address of Ollama on this machine.")] = "http://localhost:11434"
    engine: Annotated[
        Literal["auto", "ollama", "embedded"],
        about("auto: Ollama where it answers, else the built-in llama.cpp; or insist on one."),
    ] = "auto"
    heartbeat_interval: Annotated[Seconds, seconds("Seconds between two reports.")] = 5.0
    mdns_service_type: Annotated[str, about("Service type looked for.")] = "_fleet-manager._tcp.local."
    drain_timeout: Annotated[Seconds, seconds("Seconds that running requests get when the agent stops.", ge=0)] = 30.0
    data_dir: Annotated[str, about("Directory of the agent's log files and models.")] = "~/.fleet-manager"
    log_level: Annotated[Level, about("Level of the JSON log file.")] = "DEBUG"
    console_log_level: Annotated[Level, about("Level of the console.")] = "INFO"

    @property
    def home(self) -> Path:
        """The data directory, expanded."""
        return Path(self.data_dir).expanduser()


class Loaded(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Settings, and where each value came from."""

    values: T
    origins: dict[str, Origin]


def load(
    kind: type[T],
    prefix: str,
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Mapping[str, str] | None = None,
) -> Loaded[T]:
    """Build settings: a flag beats the environment, which beats the env file, which beats the default.

    A flag of None counts as not given, and so does an empty variable, as scripts and containers have them. Raises
    `SettingsError` naming the setting, its source and what it must be, or the settings that contradict each other.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for field in msgspec.structs.fields(kind):
        variable = f"{prefix}{field.name.upper()}"
        sources: tuple[tuple[Origin, str, Any], ...] = (
            ("flag", f"--{field.name.replace('_', '-')}", (flags or {}).get(field.name)),
            ("environment", variable, environment.get(variable) or None),
            ("file", f"{variable} in the env file", (file or {}).get(variable) or None),
            ("default", variable, field.default),
        )
        origin, source, given = next(each for each in sources if each[2] is not None)
        origins[field.name] = origin
        values[field.name] = understood(field.name, source, given, field.type)
    return Loaded(values=kind(**values), origins=origins)


def understood(name: str, source: str, given: Any, annotation: Any) -> Any:
    """Return what was written as a value of the setting's type. Raises `SettingsError` where it has no sense."""
    try:
        value = msgspec.convert(spelled(given, annotation), annotation, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source} must be {requirement(annotation)}, not {given!r}") from error
    if isinstance(value, str) and not value.isprintable():
        raise SettingsError(f"{source} must be text without control characters, not {given!r}")
    if name == "host" and not HOST.fullmatch(value):
        raise SettingsError(f"{source} must be an address or a name of this machine, not {given!r}")
    if name == "data_dir":
        if not value:
            raise SettingsError(f"{source} must be a directory, not nothing")
        expanded(value, source)
    return value


def requirement(annotation: Any) -> str:
    """Return in plain words what a value must be: `a whole number from 0 to 65535`."""
    if allowed := words(annotation):
        return f"one of {', '.join(allowed)}"
    kind, meta = get_args(annotation)
    if kind in NOUNS:
        return f"{NOUNS[kind]} from {meta.ge:g} to {meta.le:.15g}"
    return "true or false" if kind is bool else "text"


def expanded(path: str, source: str) -> Path:
    """Return a path with `~` replaced. Raises `SettingsError` where nobody knows whose home is meant."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"{source} is {path!r}, and there is no such home directory", hint="Write the whole path, from / on."
        ) from error


def words(annotation: Any) -> list[str]:
    """Return the allowed words of a setting; none where any value of its type will do."""
    inner = get_args(annotation)[0] if get_args(annotation) else annotation
    return [word for word in get_args(inner) if isinstance(word, str)]


def spelled(given: Any, annotation: Any) -> Any:
    """Return a word as the setting spells it: people write `debug` as well as `DEBUG`."""
    return next((word for word in words(annotation) if word.lower() == str(given).lower()), given)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting as the command line and the docs show it."""

    name: str
    variable: str
    default: Any
    about: str
    must_be: str
    """In plain words what values are allowed."""


def catalogue(kind: type[msgspec.Struct], prefix: str) -> list[Setting]:
    """Return every setting of a kind, in the order of its definition."""
    return [
        Setting(
            name=field.name,
            variable=f"{prefix}{field.name.upper()}",
            default=field.default,
            about=get_args(field.type)[1].description,
            must_be=requirement(field.type),
        )
        for field in msgspec.structs.fields(kind)
    ]


def unknown(names: Iterable[str]) -> dict[str, str]:
    """Return the FLEET_ variables among `names` that this release does not know, each with the likeliest one meant.

    The likeliest is empty where nothing is near. A misspelled setting would otherwise have no effect and no notice.
    """
    known = [setting.variable for setting in catalogue(RouterSettings, ROUTER_PREFIX)]
    known += [setting.variable for setting in catalogue(NodeSettings, NODE_PREFIX)]
    strange = (name for name in names if name.startswith(ROUTER_PREFIX) and name not in (*known, ENV_FILE_VARIABLE))
    return {name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.85)), "") for name in sorted(strange)}


def env_file(environment: Mapping[str, str] | None = None) -> Path:
    """Return the path of the env file: FLEET_ENV_FILE, or `env` in the default data directory.

    Raises `SettingsError` where nobody knows whose home is meant.
    """
    environment = os.environ if environment is None else environment
    return expanded(environment.get(ENV_FILE_VARIABLE) or "~/.fleet-manager/env", ENV_FILE_VARIABLE)


def read_env_file(path: Path) -> dict[str, str]:
    """Read `KEY=value` lines; `export `, comments and outer quotes are allowed. A file that is not there is empty.

    Raises `SettingsError` with the line number for a line that is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read {path}: {error}", hint="Mend it, or point FLEET_ENV_FILE elsewhere."
        ) from error
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.strip().isidentifier():
            raise SettingsError(f"{path}, line {number}: expected KEY=value, found {raw!r}")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[key.strip()] = value
    return found
