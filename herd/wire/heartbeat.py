"""What an agent tells the router: the body of the peer's agents, which may report here too, and what ours adds to it.

The router parses it and our agent builds it, so reading this file takes neither views nor a web framework. A body
describes its engine either as the peer does (`ollama`, sizes in GB) or as ours does (`engine`, any dialect, bytes).
"""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from events.types import Dialect, Pressure
from herd.errors import BadRequest

#: Models that one machine may list; a real one has a few hundred at most.
MODELS_MAX = 2000

NodeId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
"""No colon: `node:model` names a queue."""
Name = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Text = Annotated[str, Meta(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Words = Annotated[tuple[Text, ...], Meta(max_length=64)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Gib = Annotated[float, Meta(ge=0, le=1e9)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a heartbeat: unknown fields are ignored, what is at its default is not sent."""


# --- the machine: the same in both kinds of body ----------------------------------------------------------------------


class Cpu(Part, frozen=True, kw_only=True):
    """The processor."""

    cores_physical: Count = 0
    utilization_pct: Annotated[float, Meta(ge=0, le=100_000)] = 0.0


class Memory(Part, frozen=True, kw_only=True):
    """Main memory; the peer says GB and means GiB."""

    total_gb: Gib = 0.0
    used_gb: Gib = 0.0
    available_gb: Gib = 0.0
    pressure: Pressure = "normal"
    wired_gb: Gib = 0.0
    compressed_gb: Gib = 0.0
    swap_used_gb: Gib = 0.0
    swap_total_gb: Gib = 0.0


class Thermal(Part, frozen=True, kw_only=True):
    """The hottest sensor."""

    state: Literal["nominal", "warning", "unknown"] = "unknown"
    temperature_c: Annotated[float, Meta(ge=-273.15, le=10_000)] | None = None
    source: Text = ""


class Disk(Part, frozen=True, kw_only=True):
    """A volume; GiB as well."""

    total_gb: Gib = 0.0
    used_gb: Gib = 0.0
    available_gb: Gib = 0.0


class Capacity(Part, frozen=True, kw_only=True):
    """What a machine that people also work on is willing to give."""

    mode: Text = "full"
    ceiling_gb: Gib = 0.0
    availability_score: Annotated[float, Meta(ge=0, le=1)] = 1.0
    reason: Text = ""
    override_active: bool = False
    learning_confidence: Annotated[float, Meta(ge=0, le=1)] = 0.0
    days_observed: Annotated[float, Meta(ge=0, le=1e6)] = 0.0


# --- the peer's description of its Ollama -----------------------------------------------------------------------------


class PeerLoaded(Part, frozen=True, kw_only=True):
    """A model in memory; `size_gb` is GiB."""

    name: Name
    size_gb: Gib = 0.0
    parameter_size: Text = ""
    quantization: Text = ""
    context_length: Count | None = None
    digest: Text = ""


class PeerMeta(Part, frozen=True, kw_only=True):
    """What /api/tags says about a model on disk."""

    modified_at: Text = ""
    digest: Text = ""
    format: Text = ""
    family: Text = ""
    families: Words | None = None
    parameter_size: Text = ""
    quantization_level: Text = ""
    parent_model: Text = ""
    capabilities: Words | None = None


class PeerOllama(Part, frozen=True, kw_only=True):
    """The peer's view of Ollama. Absent sizes and metadata mean: what you know is still true."""

    models_loaded: Annotated[tuple[PeerLoaded, ...], Meta(max_length=MODELS_MAX)] = ()
    models_available: Annotated[tuple[Name, ...], Meta(max_length=MODELS_MAX)] = ()
    models_available_sizes: Annotated[dict[str, Gib], Meta(max_length=MODELS_MAX)] | None = None
    """Decimal gigabytes, unlike every other size here."""
    models_available_meta: Annotated[dict[str, PeerMeta], Meta(max_length=MODELS_MAX)] | None = None
    max_loaded_models: Count = 0
    num_parallel: Count = 0
    version: Text | None = None
    """Agents before 0.11 do not send it; an empty one means that Ollama did not answer."""


# --- our agent's description of any engine ----------------------------------------------------------------------------


class Model(Part, frozen=True, kw_only=True):
    """A model on disk; the fields are those of `events.types.Model`."""

    name: Name
    size_bytes: Bytes = 0
    digest: Text = ""
    modified_at: Text = ""
    format: Text = ""
    family: Text = ""
    families: Words = ()
    parent_model: Text = ""
    parameter_size: Text = ""
    quantization: Text = ""
    context_length: Count = 0
    embedding_length: Count = 0
    capabilities: Words = ()


class Loaded(Part, frozen=True, kw_only=True):
    """A model in memory; the fields are those of `events.types.Resident`."""

    name: Name
    size_bytes: Bytes = 0
    size_vram_bytes: Bytes = 0
    context_length: Count = 0
    expires_at: Text = ""
    digest: Text = ""
    parameter_size: Text = ""
    quantization: Text = ""
    family: Text = ""


class Engine(Part, frozen=True, kw_only=True):
    """The inference server beside the agent."""

    dialect: Dialect
    name: Text
    url: Text
    """Where the agent reaches it; loopback means: on the machine that sent this."""
    up: bool = True
    version: Text = ""
    parallel: Count = 0
    """Requests that it runs at once per loaded model; 0 = unknown."""
    loaded_max: Count = 0
    """Models that it keeps in memory at once; 0 = unknown."""
    models: Annotated[tuple[Model, ...], Meta(max_length=MODELS_MAX)] | None = None
    """None: not known now; what you know is still true."""
    loaded: Annotated[tuple[Loaded, ...], Meta(max_length=MODELS_MAX)] | None = None
    """None: not known now; what you know is still true."""


class Heartbeat(Part, frozen=True, kw_only=True):
    """One report. Only `node_id` is always needed; a node that stays also describes its engine."""

    node_id: NodeId
    agent: Text = ""
    """`herd` for our own agent."""
    agent_version: Text = ""
    timestamp: Annotated[float, Meta(ge=0, le=1e11)] = 0.0
    """The sender's clock, seconds since the epoch; 0 = not given."""
    arch: Text = ""
    chip: Text = ""
    memory_bandwidth_gbps: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    cpu: Cpu | None = None
    memory: Memory | None = None
    thermal: Thermal | None = None
    disk: Disk | None = None
    capacity: Capacity | None = None
    ollama: PeerOllama | None = None
    ollama_host: Text = ""
    engine: Engine | None = None
    lan_ip: Text = ""
    draining: bool = False
    leaving: bool = False
    """The agent stops now; nothing follows."""
    connection_failures: Count = 0
    """Heartbeats that failed since the last one that arrived."""
    connection_failures_total: Count = 0

    @property
    def reported_url(self) -> str:
        """The address of the engine as the agent sees it, empty where it says nothing."""
        return self.engine.url if self.engine is not None else self.ollama_host


class Answer(Part, frozen=True, kw_only=True):
    """What the router answers. Routers other than ours do not count work: None."""

    status: str = ""
    node_status: str = ""
    in_flight: int | None = None
    """Requests that run on the node."""
    waiting: int | None = None
    """Requests that wait for a slot on the node."""


class BadHeartbeat(BadRequest):
    """A heartbeat that makes no sense; `field` is the path of the culprit, empty where the whole is no JSON object."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


_decoder = msgspec.json.Decoder(Heartbeat)
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?\Z", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")


def parse(body: bytes) -> Heartbeat:
    """Read a heartbeat. Raises `BadHeartbeat` that names the field and what was expected there."""
    try:
        heartbeat = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadHeartbeat(f"the heartbeat is no JSON object: {error}") from error
    if heartbeat.ollama is None and heartbeat.engine is None and not (heartbeat.draining or heartbeat.leaving):
        raise BadHeartbeat("ollama: missing; expected an object that describes the engine", field="ollama")
    if heartbeat.reported_url:
        field = "ollama_host" if heartbeat.engine is None else "engine.url"
        _check_url(heartbeat.reported_url, field)
    return heartbeat


def _explained(text: str) -> BadHeartbeat:
    place = _PLACE.match(text)
    assert place is not None  # every part of the pattern may be empty
    what, path = place["what"], place["path"] or ""
    missing = _MISSING.search(what)
    if missing is not None:
        path = f"{path}.{missing['name']}" if path else missing["name"]
        what = "missing, and there is no default"
    return BadHeartbeat(f"{path or 'the heartbeat'}: {what}", field=path)


def _check_url(url: str, field: str) -> None:
    """Refuse what could not be the base address of an engine: another scheme, credentials, a query."""
    expected = "expected http://host:port"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise BadHeartbeat(f"{field}: {error}; {expected}", field=field) from error
    if parts.username is not None or parts.password is not None:  # not repeated: it would stand in the log
        raise BadHeartbeat(
            f"{field}: holds a user name or a password, which is sent to no engine; {expected}", field=field
        )
    if parts.scheme == "https":
        raise BadHeartbeat(f"{field}: {url!r}: the router speaks plain http to engines; {expected}", field=field)
    if parts.scheme != "http" or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise BadHeartbeat(f"{field}: {url!r} is no address of a server; {expected}", field=field)
    if not url.isascii() or re.search(r"[\s\\]", url):
        raise BadHeartbeat(
            f"{field}: {url!r} holds spaces, backslashes or letters beyond ASCII; {expected}", field=field
        )
