"""Everything that can happen, one frozen struct each: the whole vocabulary of the log on one page.

Subject first, past tense, facts and not opinions, units last. A tag is permanent: renaming a class is free, renaming a
tag breaks every log ever written. New fields need defaults. Prompts, answers, images and secrets never enter an event;
up to 500 characters of a node's own error text do, and may quote what the node was asked.
"""

from typing import Any, ClassVar, Literal

import msgspec

# --- building blocks ------------------------------------------------------------------------------------------------

Dialect = Literal["ollama", "openai"]
Kind = Literal["chat", "generate", "embed"]
NodeStatus = Literal["online", "degraded", "offline", "draining"]
Pressure = Literal["normal", "warn", "critical"]
Outcome = Literal["completed", "failed", "incomplete", "no_output", "cancelled", "expired", "rejected", "abandoned"]
Elimination = Literal[
    "offline", "draining", "engine_down", "model_absent", "capability", "memory_critical", "memory_short",
    "paused", "bootstrap", "unavailable", "excluded",
]  # fmt: skip


# Events and their parts keep out of the garbage collector's sight (gc=False): they hold values, so no cycle can arise.


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A part of an event: immutable, and silent about what is at its default."""


class Engine(Fact, frozen=True, kw_only=True):
    """The inference server behind a node: which dialect it speaks, and who it is."""

    dialect: Dialect = "ollama"
    name: str = "Ollama"
    version: str = ""


class Hardware(Fact, frozen=True, kw_only=True):
    """What does not change while a machine runs. Zero and empty mean unknown."""

    arch: str = ""
    chip: str = ""
    cores: int = 0
    memory_total_gib: float = 0.0
    memory_bandwidth_gbps: float = 0.0
    """Gigabytes (10^9 bytes) a second; 0 = unknown."""


class Memory(Fact, frozen=True, kw_only=True):
    """Main memory now, in GiB."""

    used_gib: float = 0.0
    available_gib: float = 0.0
    wired_gib: float = 0.0
    compressed_gib: float = 0.0
    swap_used_gib: float = 0.0
    swap_total_gib: float = 0.0
    pressure: Pressure = "normal"


class Thermal(Fact, frozen=True, kw_only=True):
    """Hardware temperature as the node sees it."""

    state: Literal["nominal", "warning", "unknown"] = "unknown"
    temperature_c: float | None = None
    source: str = ""


class Disk(Fact, frozen=True, kw_only=True):
    """The volume that holds the models, in GiB."""

    total_gib: float
    used_gib: float
    available_gib: float


class Capacity(Fact, frozen=True, kw_only=True):
    """What a machine that people also work on is willing to give."""

    mode: str = "full"
    ceiling_gib: float = 0.0
    availability: float = 1.0
    """0 (busy with its owner) to 1 (all ours)."""
    reason: str = ""
    override_active: bool = False
    learning_confidence: float = 0.0
    days_observed: float = 0.0


class Model(Fact, frozen=True, kw_only=True):
    """A model on a node's disk."""

    name: str
    """As the node spells it, with its tag."""
    size_bytes: int = 0
    digest: str = ""
    modified_at: str = ""
    format: str = ""
    family: str = ""
    families: tuple[str, ...] = ()
    parent_model: str = ""
    parameter_size: str = ""
    quantization: str = ""
    context_length: int = 0
    embedding_length: int = 0
    capabilities: tuple[str, ...] = ()
    """As the engine reports them (`completion`, `tools`, `vision`, `embedding`, …); empty means unknown, not none."""


class Resident(Fact, frozen=True, kw_only=True):
    """A model in a node's memory."""

    name: str
    size_bytes: int = 0
    """Weights plus KV cache, as the engine reports it; 0 = unknown."""
    size_vram_bytes: int = 0
    context_length: int = 0
    expires_at: str = ""
    digest: str = ""
    parameter_size: str = ""
    quantization: str = ""
    family: str = ""


class Candidate(Fact, frozen=True, kw_only=True):
    """A node that could serve, with the points of each signal in the order of `RouteChosen.signals`."""

    node: str
    total: float
    points: tuple[float, ...]
    reading_age_ms: int
    """Age of the node's newest reading when the decision was made; -1 = it never reported."""


class Eliminated(Fact, frozen=True, kw_only=True):
    """A node that could not serve, and why."""

    node: str
    reason: Elimination
    detail: str = ""


class Change(Fact, frozen=True, kw_only=True):
    """One thing the router altered in the client's body, and why."""

    field: str
    why: str


# --- events ---------------------------------------------------------------------------------------------------------


class Happened(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", gc=False):
    """The base of every event."""

    schema: ClassVar[int] = 1
    telemetry: ClassVar[bool] = False
    """True for high-volume readings, which are stored apart and kept for a shorter time."""

    @property
    def stream(self) -> str:
        """The name of what this happened to, such as `node/ash` or `request/0190…`."""
        raise NotImplementedError


class NodeEvent(Happened, frozen=True, kw_only=True):
    """Something that happened to a node."""

    node: str

    @property
    def stream(self) -> str:
        """`node/<name>`."""
        return f"node/{self.node}"


class RequestEvent(Happened, frozen=True, kw_only=True):
    """Something that happened to a request."""

    request: str

    @property
    def stream(self) -> str:
        """`request/<id>`."""
        return f"request/{self.request}"


class RouterEvent(Happened, frozen=True, kw_only=True):
    """Something that happened to the router itself or to its log."""

    @property
    def stream(self) -> str:
        """`router`."""
        return "router"


class NodeJoined(NodeEvent, frozen=True, kw_only=True, tag="node.joined"):
    """A node introduced itself, or came back with another address, engine or hardware."""

    url: str
    """Base URL of its engine as the router reaches it, without a trailing slash."""
    engine: Engine = Engine()
    hardware: Hardware = Hardware()
    agent_version: str = ""
    parallel: int = 0
    """Requests its engine runs at once per loaded model (OLLAMA_NUM_PARALLEL); 0 = unknown."""
    loaded_max: int = 0
    """Models its engine keeps in memory at once (OLLAMA_MAX_LOADED_MODELS); 0 = unknown."""


class NodeReported(NodeEvent, frozen=True, kw_only=True, tag="node.reported"):
    """A reading arrived. A field that is absent has not changed since the reading before; a keyframe has them all."""

    telemetry: ClassVar[bool] = True

    keyframe: bool = False
    cpu_pct: float | None = None
    memory: Memory | None = None
    thermal: Thermal | None = None
    disk: Disk | None = None
    capacity: Capacity | None = None
    engine_up: bool | None = None
    clock_skew_s: int | None = None
    """The node's clock minus the router's, whole seconds."""
    connection_failures: int | None = None
    """Heartbeats that failed since the last one that arrived."""


class NodeInventoryChanged(NodeEvent, frozen=True, kw_only=True, tag="node.inventory_changed"):
    """The models on a node's disk are now these."""

    models: tuple[Model, ...]


class NodeResidencyChanged(NodeEvent, frozen=True, kw_only=True, tag="node.residency_changed"):
    """The models in a node's memory are now these."""

    loaded: tuple[Resident, ...]


class NodeStatusChanged(NodeEvent, frozen=True, kw_only=True, tag="node.status_changed"):
    """A node went online, degraded (silent for a while), offline (silent for longer) or draining."""

    status: NodeStatus
    was: NodeStatus | None = None
    why: str = ""
    silent_ms: int = 0


class NodeDrainRequested(NodeEvent, frozen=True, kw_only=True, tag="node.drain_requested"):
    """Somebody asked that a node gets no new work."""

    by: str


class NodeLeft(NodeEvent, frozen=True, kw_only=True, tag="node.left"):
    """A node is no longer of the fleet; if it comes back, it introduces itself anew."""

    why: str = ""


class RequestReceived(RequestEvent, frozen=True, kw_only=True, tag="request.received"):
    """A client asked for something; the facts of its body that matter for routing, and nothing else of it."""

    kind: Kind
    dialect: Dialect
    path: str
    model: str
    """Canonical name, see `projections.fleet.canonical`."""
    asked: str
    """The name as the client wrote it."""
    streaming: bool
    client: str = ""
    """Address of the client."""
    tokens_estimated: int = 0
    """Length of the prompt in tokens, estimated from its characters."""
    needs: tuple[str, ...] = ()
    """Capabilities that the answering model must have: `tools`, `vision`, …"""
    num_ctx: int | None = None
    tokens_max: int | None = None
    """The client's limit on the answer."""
    fallbacks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    body_bytes: int = 0


class RouteChosen(RequestEvent, frozen=True, kw_only=True, tag="route.chosen"):
    """The router decided where a request goes, with everything needed to ask again and to explain it."""

    attempt: int
    """1 for the first choice; each retry counts on."""
    model: str
    policy: str
    policy_hash: str
    node: str | None
    """None when nobody could serve."""
    score: float = 0.0
    signals: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    """Best first."""
    eliminated: tuple[Eliminated, ...] = ()
    excluded: tuple[str, ...] = ()
    """Nodes not to be asked again: earlier attempts of this request failed there."""
    runner_up: str | None = None
    margin: float | None = None
    """Winner's total minus the runner-up's."""
    propensity: float = 1.0
    """Probability with which this policy chooses this node in this state."""
    seed: int = 0
    seen: int = 0
    """Position of the last event that the deciding view had folded."""


class RequestEnqueued(RequestEvent, frozen=True, kw_only=True, tag="request.enqueued"):
    """A request waits for a free slot on its node."""

    attempt: int
    node: str
    model: str
    ahead: int = 0
    """Requests that wait before it."""


class RequestDispatched(RequestEvent, frozen=True, kw_only=True, tag="request.dispatched"):
    """A request occupies a slot and is being sent to its node."""

    attempt: int
    node: str
    model: str
    sent_model: str = ""
    """The name in the body as sent, where it differs from what the client wrote."""
    changes: tuple[Change, ...] = ()


class RequestFirstToken(RequestEvent, frozen=True, kw_only=True, tag="request.first_token"):
    """The first byte of a streamed answer arrived from the node; an answer that is not streamed arrives whole."""

    attempt: int
    node: str


class RequestAttemptFailed(RequestEvent, frozen=True, kw_only=True, tag="request.attempt_failed"):
    """A node failed a request before the first byte; whether another node may be asked is in `retryable`."""

    attempt: int
    node: str
    model: str
    cause: str
    """`connect`, `timeout`, `reset`, `protocol`, `status`, …"""
    status: int | None = None
    message: str = ""
    retryable: bool = True


class RequestFinished(RequestEvent, frozen=True, kw_only=True, tag="request.finished"):
    """The end of a request: exactly one for each that was received, whatever happened."""

    outcome: Outcome
    node: str | None = None
    """Who served it, or was about to."""
    model: str = ""
    attempts: int = 0
    status: int | None = None
    """HTTP status that the client got; None when there was nobody to tell."""
    error: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""
    load_ms: int | None = None
    """Time the engine says it spent loading the model."""
    prompt_ms: int | None = None
    """Time the engine says it spent reading the prompt."""
    generate_ms: int | None = None
    """Time the engine says it spent writing the answer."""
    answer_bytes: int = 0


class PolicyPromoted(RouterEvent, frozen=True, kw_only=True, tag="policy.promoted"):
    """From here on this policy decides; its parameters are complete, so that any decision can be asked again."""

    policy: str
    policy_hash: str
    parameters: dict[str, Any] = {}
    by: str = ""


class RouterStarted(RouterEvent, frozen=True, kw_only=True, tag="router.started"):
    """A router process began to write."""

    version: str
    host: str = ""
    port: int = 0
    pid: int = 0


class RouterStopped(RouterEvent, frozen=True, kw_only=True, tag="router.stopped"):
    """A router process ended in good order."""

    why: str = ""


class RouterRecovered(RouterEvent, frozen=True, kw_only=True, tag="router.recovered"):
    """A router found requests that a crash had left open, and finished them as abandoned."""

    abandoned: int


class LogInterrupted(RouterEvent, frozen=True, kw_only=True, tag="log.interrupted"):
    """The log could not be written for a while; events that no longer fitted the queue are lost, and here counted."""

    lost: int
    since: int
    """First failure, nanoseconds since the epoch."""
    until: int
    why: str = ""


Event = (
    NodeJoined
    | NodeReported
    | NodeInventoryChanged
    | NodeResidencyChanged
    | NodeStatusChanged
    | NodeDrainRequested
    | NodeLeft
    | RequestReceived
    | RouteChosen
    | RequestEnqueued
    | RequestDispatched
    | RequestFirstToken
    | RequestAttemptFailed
    | RequestFinished
    | PolicyPromoted
    | RouterStarted
    | RouterStopped
    | RouterRecovered
    | LogInterrupted
)
