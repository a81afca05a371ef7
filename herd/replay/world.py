"""Routing fails in races and overloads, which real machines show once a month: here they come as often as one asks.

The core, the folds, the policies, the lines and the record of each request are the real ones, and so is the log; only
machines, clients and time are simulated. Everything follows from one seed, so whatever goes wrong can be had again.
"""

from collections.abc import Sequence
from functools import partial
from math import log

import msgspec

from events.clock import ManualClock
from events.memory import MemoryStore
from events.recorded import Recorded
from events.types import (
    Event,
    Hardware,
    Kind,
    NodeDrainRequested,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeResidencyChanged,
    NodeStatusChanged,
    Outcome,
    PolicyPromoted,
    RequestDispatched,
    RequestReceived,
    Resident,
    RouterStarted,
    RouterStopped,
)
from herd.core import Core
from herd.dispatch.lanes import Lanes, Turn, Waiter
from herd.dispatch.record import Record
from herd.errors import QueueFull
from herd.replay.agenda import Action, Agenda
from herd.replay.machine import Engine, Machine, Run
from herd.reports.silence import silent
from herd.routing.chance import Chance
from herd.routing.policy import Policy
from herd.wire.dialect import Ending
from projections.fleet import canonical
from projections.view import VIEW, View

#: Every twelfth report says everything, as the agent's does.
KEYFRAME_EVERY = 12
#: The first client comes when the machines have introduced themselves.
WARM_UP_S = 2.0
#: The longest that a report is under way.
LATE_MAX_S = 20.0


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A client that comes with a request."""

    at_s: float
    """Seconds after the fleet is up."""
    model: str
    kind: Kind = "chat"
    tokens_in: int = 100
    tokens_out: int = 100
    needs: tuple[str, ...] = ()
    patience_s: float | None = None
    """After so many seconds the client hangs up; None = it waits as long as it takes."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the router allows, as in its settings."""

    retries_max: int = 2
    waiting_max: int = 512
    wait_max_s: float = 300.0
    read_timeout_s: float = 120.0
    report_every_s: float = 5.0
    degraded_after_s: float = 15.0
    offline_after_s: float = 30.0


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong. Zero means never; times are means of exponential distributions, for each machine by itself."""

    death_every_s: float = 0.0
    death_lasts_s: float = 60.0
    stall_every_s: float = 0.0
    stall_lasts_s: float = 60.0
    drain_every_s: float = 0.0
    drain_lasts_s: float = 60.0
    late: float = 0.0
    """Share of reports that arrive up to 20 s late, and so out of order."""
    duplicated: float = 0.0
    """Share of reports that arrive twice."""
    lying: float = 0.0
    """Share of reports whose memory and residency have nothing to do with the truth."""


RULES = Rules()
NO_FAULTS = Faults()


class World:
    """A fleet, its router and its clients. Run once."""

    def __init__(
        self,
        machines: Sequence[Machine],
        arrivals: Sequence[Arrival],
        policy: Policy,
        *,
        seed: int,
        rules: Rules = RULES,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.chance = Chance(seed)
        self.clock = ManualClock()
        self.agenda = Agenda(self.clock)
        self.rules = rules
        self.faults = faults
        self.store = _NumberedStore(self.clock)
        self.core = Core(self.store, self.clock, policy, VIEW.initial(), seed=self.chance.bits())
        self.router = _Router(self)
        self.nodes = {machine.name: _Node(self, machine) for machine in machines}
        self._arrivals = arrivals

    @property
    def view(self) -> View:
        """The live view."""
        return self.core.view

    def run(self) -> list[Recorded]:
        """Let everything happen, until each request has ended; return the log."""
        policy = self.core.policy
        self.core.record(RouterStarted(version="simulated"))
        self.core.record(
            PolicyPromoted(policy=policy.name, policy_hash=policy.hash, parameters=policy.parameters, by="simulation")
        )
        for node in self.nodes.values():
            self.agenda.after(self.chance.uniform(), node.join)
        for arrival in self._arrivals:
            self.agenda.after(WARM_UP_S + arrival.at_s, partial(self.router.receive, arrival))
        self.agenda.after(self.rules.report_every_s, self._look_for_silence)
        while self.router.ended < len(self._arrivals):
            assert self.agenda.step(), "requests are open, and nothing is going to happen"
        self.core.record(RouterStopped(why="the simulation is over"))
        return list(self.store.read())

    def lasting(self, mean_s: float) -> float:
        """Draw a time from an exponential distribution."""
        return -log(1.0 - self.chance.uniform()) * mean_s

    def _look_for_silence(self) -> None:
        self.agenda.after(self.rules.report_every_s, self._look_for_silence)
        rules = self.rules
        for event in silent(
            self.view.fleet,
            now=self.clock.now(),
            timeout_s=rules.degraded_after_s,
            offline_s=rules.offline_after_s,
        ):
            self.core.record(event)


def traffic(
    chance: Chance,
    *,
    count: int,
    per_s: float,
    models: Sequence[str],
    embedding: Sequence[str] = (),
    tokens_in_max: int = 2000,
    tokens_out_max: int = 400,
    leaving: float = 0.0,
) -> list[Arrival]:
    """Make up `count` clients that come independently, `per_s` a second; a share `leaving` of them has no patience.

    The first model is asked for most: each is chosen half as often as the one before it. Those in `embedding` are
    asked for embeddings, the others to chat.
    """
    arrivals: list[Arrival] = []
    at_s = 0.0
    for _ in range(count):
        at_s += -log(1.0 - chance.uniform()) / per_s
        pick = 0
        while pick < len(models) - 1 and chance.below(2):
            pick += 1
        arrivals.append(
            Arrival(
                at_s=at_s,
                model=models[pick],
                kind="embed" if models[pick] in embedding else "chat",
                tokens_in=1 + chance.below(tokens_in_max),
                tokens_out=1 + chance.below(tokens_out_max),
                patience_s=chance.uniform() * 20.0 if chance.uniform() < leaving else None,
            )
        )
    return arrivals


class _NumberedStore(MemoryStore):
    """A log whose ids are counted instead of drawn, so that the same seed gives the same bytes."""

    def append(
        self,
        event: Event,
        *,
        cause: str | None = None,
        at: int | None = None,
        id: str | None = None,  # noqa: A002  # the protocol's own name
    ) -> Recorded:
        return super().append(event, cause=cause, at=at, id=id or f"{self.state.head + 1:032x}")


class _Request(msgspec.Struct, eq=False):
    """A request that has not ended, as its client and the network see it."""

    arrival: Arrival
    record: Record
    waiter: Waiter | None = None
    """Its place, while it stands in a line."""
    wait_until: int | None = None
    """When it has waited for as long as it may, over all lines; None as long as it has not waited."""
    run: Run | None = None


class _Router:
    """Clients and the network around the router's own record and lines."""

    def __init__(self, world: World) -> None:
        self.ended = 0
        self._world = world
        self._open: dict[str, _Request] = {}
        self._lanes = Lanes(world.core, waiting_max=world.rules.waiting_max)

    def receive(self, arrival: Arrival) -> None:
        received = RequestReceived(
            request=f"{self.ended + len(self._open) + 1:08x}",
            kind=arrival.kind,
            dialect="ollama",
            path=f"/api/{arrival.kind}",
            model=canonical(arrival.model),
            asked=arrival.model,
            streaming=True,
            tokens_estimated=arrival.tokens_in,
            needs=arrival.needs,
            tokens_max=arrival.tokens_out,
        )
        request = _Request(arrival=arrival, record=Record(self._world.core, received))
        self._open[received.request] = request
        if arrival.patience_s is not None:
            self._world.agenda.after(arrival.patience_s, partial(self._hang_up, request))
        self._route(request)

    def first_token(self, run: Run) -> None:
        self._open[run.request].record.first_token(run.node)

    def done(self, run: Run) -> None:
        ending = Ending(
            finished=True,
            prompt_tokens=run.tokens_in,
            completion_tokens=run.tokens_out,
            finish_reason="stop",
            load_ms=round(run.load_s * 1000),
            prompt_ms=round(run.prompt_s * 1000),
            generate_ms=round(run.generate_s * 1000),
        )
        self._end(self._open[run.request], "completed", ending, status=200)

    def broke(self, run: Run, cause: str, status: int | None, message: str) -> None:
        request = self._open[run.request]
        if run.answering:
            self._end(request, "failed", status=200, error=message)
            return
        request.run = None
        request.record.failed(run.node, cause, status=status, message=message, retryable=True)
        if request.record.attempt <= self._world.rules.retries_max:
            request.record.attempt += 1
            self._route(request)
        else:
            self._end(request, "failed", status=502, error=message)

    def _route(self, request: _Request) -> None:
        record = request.record
        if record.finished:
            return
        recorded, chosen = record.choose()
        if chosen.node is None:
            outcome: Outcome = "failed" if record.attempt > 1 else "rejected"
            self._end(request, outcome, status=503, error="no node can serve")
            return
        dispatched = RequestDispatched(
            request=record.request, attempt=record.attempt, node=chosen.node, model=chosen.model
        )
        if self._lanes.start(dispatched, recorded.id):
            self._start(request, dispatched)
        else:
            self._wait(request, dispatched, recorded.id)

    def _wait(self, request: _Request, dispatched: RequestDispatched, decision: str) -> None:
        def call(turn: Turn) -> bool:
            request.waiter = None
            then = partial(self._start, request, dispatched) if turn == "go" else partial(self._route, request)
            self._world.agenda.after(0.0, then)
            return True

        try:
            waiter = self._lanes.wait(dispatched, call, decision)
        except QueueFull as error:
            self._end(request, "rejected", status=error.status, error=error.message)
            return
        request.waiter = waiter
        now = self._world.clock.now()
        if request.wait_until is None:
            request.wait_until = now + round(self._world.rules.wait_max_s * 1e9)
        left_s = max(0, request.wait_until - now) / 1e9
        self._world.agenda.after(left_s, partial(self._expire, request, waiter))

    def _expire(self, request: _Request, waiter: Waiter) -> None:
        if request.waiter is waiter:
            self._end(request, "expired", status=503, error="no slot became free in time")

    def _hang_up(self, request: _Request) -> None:
        if not request.record.finished:
            self._end(request, "cancelled", status=None, error="the client hung up")

    def _start(self, request: _Request, dispatched: RequestDispatched) -> None:
        if request.record.finished:
            return
        run = Run(
            request=dispatched.request,
            attempt=dispatched.attempt,
            node=dispatched.node,
            model=dispatched.model,
            tokens_in=request.arrival.tokens_in,
            tokens_out=request.arrival.tokens_out,
        )
        request.run = run
        engine = self._world.nodes[dispatched.node].engine
        engine.start(run)
        self._world.agenda.after(self._world.rules.read_timeout_s, partial(self._time_out, engine, run))

    def _time_out(self, engine: Engine, run: Run) -> None:
        """Give up on a node that has been silent for long; as long as it answers it may take its time."""
        if run.over:
            return
        if run.answering and not run.lost:
            self._world.agenda.after(self._world.rules.read_timeout_s, partial(self._time_out, engine, run))
            return
        engine.stop(run)
        self.broke(run, "timeout", None, "no answer in time")

    def _end(
        self,
        request: _Request,
        outcome: Outcome,
        ending: Ending | None = None,
        *,
        status: int | None,
        error: str = "",
    ) -> None:
        waiter, run = request.waiter, request.run
        if waiter is not None:
            request.waiter = None
            self._lanes.leave(waiter)
        if run is not None:
            self._world.nodes[run.node].engine.stop(run)
        del self._open[request.record.request]
        self.ended += 1
        request.record.finish(outcome, ending or Ending(), status=status, error=error)


class _Node:
    """A machine as the router gets to know it: its agent's reports, its silences, its faults."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.engine = Engine(machine, world.clock, world.agenda, world.router)
        self._world = world
        self._machine = machine
        self._reports = 0
        self._believed: tuple[Resident, ...] = ()
        self._draining = False

    def join(self) -> None:
        """Introduce the machine, and begin to report and to fail."""
        self._introduce()
        self._report_for_ever()
        faults = self._world.faults
        self._plan(faults.death_every_s, self._die)
        self._plan(faults.stall_every_s, self._stall)
        self._plan(faults.drain_every_s, self._drain)

    def _come_back(self) -> None:
        was = self._world.view.fleet.nodes[self._machine.name].status
        if was != "online":
            self._world.core.record(NodeStatusChanged(node=self._machine.name, status="online", was=was))

    def _introduce(self) -> None:
        machine = self._machine
        bandwidth = machine.bandwidth_gbps if machine.bandwidth_known else 0.0
        hardware = Hardware(memory_total_gib=machine.memory_gib, memory_bandwidth_gbps=bandwidth)
        core = self._world.core
        core.record(
            NodeJoined(
                node=machine.name,
                url=f"http://{machine.name}.invalid:11434",
                hardware=hardware,
                parallel=machine.parallel,
            )
        )
        core.record(NodeInventoryChanged(node=machine.name, models=machine.models))
        self._reports = 0
        self._report()

    def _report_for_ever(self) -> None:
        self._world.agenda.after(self._world.rules.report_every_s, self._report_for_ever)
        if self.engine.alive:
            self._send()

    def _send(self) -> None:
        """Send a report, through a network that may delay or repeat it."""
        chance, faults = self._world.chance, self._world.faults
        reported, loaded = self._measure()
        for _ in range(2 if chance.uniform() < faults.duplicated else 1):
            delay_s = LATE_MAX_S * chance.uniform() if chance.uniform() < faults.late else 0.01 * chance.uniform()
            self._world.agenda.after(delay_s, partial(self._hear, reported, loaded))

    def _report(self) -> None:
        self._hear(*self._measure())

    def _measure(self) -> tuple[NodeReported, tuple[Resident, ...]]:
        chance, engine = self._world.chance, self.engine
        memory, loaded = engine.memory, engine.loaded
        if chance.uniform() < self._world.faults.lying:
            available = 2 * self._machine.memory_gib * chance.uniform()
            memory = msgspec.structs.replace(memory, available_gib=available)
            loaded = loaded[:-1] if loaded else tuple(Resident(name=model.name) for model in self._machine.models)
        keyframe = self._reports % KEYFRAME_EVERY == 0
        self._reports += 1
        capacity = self._machine.capacity if keyframe else None
        reported = NodeReported(
            node=self._machine.name, keyframe=keyframe, cpu_pct=engine.busy_pct, memory=memory, capacity=capacity
        )
        return reported, loaded

    def _hear(self, reported: NodeReported, loaded: tuple[Resident, ...]) -> None:
        self._world.core.record(reported)
        if loaded != self._believed:
            self._believed = loaded
            self._world.core.record(NodeResidencyChanged(node=self._machine.name, loaded=loaded))
        if not self._draining:
            self._come_back()

    def _plan(self, every_s: float, fault: Action) -> None:
        if every_s > 0:
            self._world.agenda.after(self._world.lasting(every_s), fault)

    def _die(self) -> None:
        self.engine.die()
        self._world.agenda.after(self._world.lasting(self._world.faults.death_lasts_s), self._revive)

    def _revive(self) -> None:
        self.engine.revive()
        self._introduce()
        self._plan(self._world.faults.death_every_s, self._die)

    def _stall(self) -> None:
        self.engine.stall()
        self._world.agenda.after(self._world.lasting(self._world.faults.stall_lasts_s), self._recover)

    def _recover(self) -> None:
        self.engine.recover()
        self._plan(self._world.faults.stall_every_s, self._stall)

    def _drain(self) -> None:
        self._draining = True
        self._world.core.record(NodeDrainRequested(node=self._machine.name, by="operator"))
        self._world.agenda.after(self._world.lasting(self._world.faults.drain_lasts_s), self._undrain)

    def _undrain(self) -> None:
        self._draining = False
        self._plan(self._world.faults.drain_every_s, self._drain)
