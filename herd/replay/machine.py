"""A simulated machine has an engine's habits: it loads, evicts, keeps alive, slows down under load, dies and stalls."""

from typing import Protocol

import msgspec

from events.clock import ManualClock
from events.types import Capacity, Memory, Model, Resident
from herd.replay.agenda import Agenda
from projections.fleet import canonical

GIB = 1024**3

#: What an operating system and its owner's programs keep for themselves.
SYSTEM_GIB = 4.0
#: Part of the memory bandwidth that reading weights achieves.
EFFICIENCY = 0.6
#: Reading a prompt is this much faster than writing an answer, because tokens are processed together.
PROMPT_SPEEDUP = 20.0
#: KV cache and buffers on top of the weights.
CACHE_SHARE = 0.15
CONTEXT_DEFAULT = 8192


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated machine is made of."""

    name: str
    models: tuple[Model, ...]
    memory_gib: float = 64.0
    bandwidth_gbps: float = 400.0
    bandwidth_known: bool = True
    """Whether its agent reports the bandwidth."""
    parallel: int = 1
    disk_gibps: float = 2.0
    keep_alive_s: float = 300.0
    loaded: tuple[str, ...] = ()
    """Canonical names of what is in memory at the beginning; it stays until it is used and then let go."""
    capacity: Capacity | None = None


class Run(msgspec.Struct, eq=False):
    """One attempt of a request as the engine sees it."""

    request: str
    attempt: int
    node: str
    model: str
    tokens_in: int
    tokens_out: int
    load_s: float = 0.0
    prompt_s: float = 0.0
    generate_s: float = 0.0
    answering: bool = False
    """Its first byte has left."""
    lost: bool = False
    """The engine stalled under it: the connection stays open, and nothing more comes."""
    over: bool = False


class Answers(Protocol):
    """Who hears what becomes of a run."""

    def first_token(self, run: Run) -> None:
        """The first byte arrived."""
        ...

    def done(self, run: Run) -> None:
        """The answer is complete."""
        ...

    def broke(self, run: Run, cause: str, status: int | None, message: str) -> None:
        """The run failed."""
        ...


class _Copy(msgspec.Struct):
    """A model in memory."""

    model: Model
    size_bytes: int
    ready_at: int
    users: int = 0
    used_at: int = 0


class Engine:
    """One machine with its engine, in virtual time."""

    def __init__(self, machine: Machine, clock: ManualClock, agenda: Agenda, answers: Answers) -> None:
        self.machine = machine
        self.alive = True
        self.stalled = False
        self._clock = clock
        self._agenda = agenda
        self._answers = answers
        self._models = {canonical(model.name): model for model in machine.models}
        self._copies: dict[str, _Copy] = {}
        self._runs: dict[Run, _Copy | None] = {}
        for name in machine.loaded:
            copy = self._load(name, self._models[name])
            assert copy is not None, f"{machine.name} has no room for {name}"
            copy.ready_at = clock.now()

    @property
    def loaded(self) -> tuple[Resident, ...]:
        """What is in memory."""
        return tuple(
            Resident(
                name=copy.model.name,
                size_bytes=copy.size_bytes,
                context_length=copy.model.context_length or CONTEXT_DEFAULT,
                family=copy.model.family,
            )
            for copy in self._copies.values()
        )

    @property
    def memory(self) -> Memory:
        """How full it is."""
        available = max(0.0, self._room_bytes() / GIB)
        total = self.machine.memory_gib
        pressure = "critical" if available < 0.02 * total else "warn" if available < 0.1 * total else "normal"
        return Memory(used_gib=total - available, available_gib=available, pressure=pressure)

    @property
    def busy_pct(self) -> float:
        """How busy it is, 0 to 100."""
        return min(100.0, 25.0 * len(self._runs))

    def start(self, run: Run) -> None:
        """Take a request; what becomes of it is said later, never before this returns."""
        self._runs[run] = None
        if not self.alive:
            self._agenda.after(0.001, lambda: self._break(run, "connect", None, "connection refused"))
            return
        if self.stalled:
            run.lost = True
            return
        model = self._models.get(run.model)
        if model is None:
            self._agenda.after(0.001, lambda: self._break(run, "status", 404, f"model '{run.model}' not found"))
            return
        copy = self._copies.get(run.model) or self._load(run.model, model)
        if copy is None:
            self._agenda.after(0.1, lambda: self._break(run, "status", 500, "model requires more memory"))
            return
        self._answer(run, copy)

    def stop(self, run: Run) -> None:
        """Forget a run whose client or router has gone. Harmless when it is over."""
        if run.over:
            return
        run.over = True
        copy = self._runs.pop(run)
        if copy is not None:
            copy.users -= 1
            self._keep(run.model, copy)

    def die(self) -> None:
        """Lose power: everything in memory is gone, and every connection breaks."""
        self.alive = self.stalled = False
        self._copies.clear()
        for run in list(self._runs):
            self._break(run, "reset", None, "connection reset")

    def revive(self) -> None:
        """Come back with empty memory."""
        self.alive = True

    def stall(self) -> None:
        """Go silent: connections stay open, and nothing comes out of them any more."""
        self.stalled = True
        for run in self._runs:
            run.lost = True

    def recover(self) -> None:
        """Serve again. What was asked while the machine was stalled stays unanswered."""
        self.stalled = False

    def _room_bytes(self) -> int:
        used = sum(copy.size_bytes for copy in self._copies.values())
        return int((self.machine.memory_gib - SYSTEM_GIB) * GIB) - used

    def _load(self, name: str, model: Model) -> _Copy | None:
        size = round(model.size_bytes * (1 + CACHE_SHARE))
        idle = sorted(
            (copy.used_at, other) for other, copy in self._copies.items() if copy.users == 0 and other != name
        )
        for _, other in idle:
            if self._room_bytes() >= size:
                break
            del self._copies[other]
        if self._room_bytes() < size:
            return None
        now = self._clock.now()
        load_ns = round(model.size_bytes / (self.machine.disk_gibps * GIB) * 1e9)
        copy = _Copy(model=model, size_bytes=size, ready_at=now + load_ns, used_at=now)
        self._copies[name] = copy
        return copy

    def _answer(self, run: Run, copy: _Copy) -> None:
        self._runs[run] = copy
        copy.users += 1
        copy.used_at = self._clock.now()
        gigabytes = max(0.1, copy.model.size_bytes / 1e9)
        sharing = sum(copy is not None for copy in self._runs.values())
        tokens_s = self.machine.bandwidth_gbps * EFFICIENCY / gigabytes / sharing**0.5
        run.load_s = max(0, copy.ready_at - self._clock.now()) / 1e9
        run.prompt_s = run.tokens_in / (tokens_s * PROMPT_SPEEDUP)
        run.generate_s = run.tokens_out / tokens_s
        self._agenda.after(run.load_s + run.prompt_s, lambda: self._begin(run))

    def _begin(self, run: Run) -> None:
        if not (run.over or run.lost):
            run.answering = True
            self._answers.first_token(run)
            self._agenda.after(run.generate_s, lambda: self._end(run))

    def _end(self, run: Run) -> None:
        if not (run.over or run.lost):
            self.stop(run)
            self._answers.done(run)

    def _break(self, run: Run, cause: str, status: int | None, message: str) -> None:
        if not run.over:
            self.stop(run)
            self._answers.broke(run, cause, status, message)

    def _keep(self, name: str, copy: _Copy) -> None:
        used_at = copy.used_at = self._clock.now()

        def unload() -> None:
            if self._copies.get(name) is copy and copy.users == 0 and copy.used_at == used_at:
                del self._copies[name]

        if copy.users == 0:
            self._agenda.after(self.machine.keep_alive_s, unload)
