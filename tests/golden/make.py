"""Makes the golden logs: histories of a small fleet, decided by the real core, the same bytes from every run.

    python -m tests.golden.make            write all logs and the states that they fold to
    python -m tests.golden.make --states   keep the logs, write the states again: after a deliberate change of a fold

A log in this directory that a release has written is kept for ever; a changed state is read in the diff.
"""

import argparse
from collections.abc import Callable
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from events.clock import ManualClock
from events.jsonl import dump, load
from events.memory import MemoryStore
from events.recorded import Recorded
from events.types import (
    Capacity,
    Disk,
    Engine,
    Hardware,
    Kind,
    Memory,
    Model,
    NodeDrainRequested,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeResidencyChanged,
    NodeStatusChanged,
    Outcome,
    PolicyPromoted,
    RequestAttemptFailed,
    RequestDispatched,
    RequestEnqueued,
    RequestFinished,
    RequestFirstToken,
    RequestReceived,
    Resident,
    RouterRecovered,
    RouterStarted,
    RouterStopped,
    Thermal,
)
from herd.core import Core
from herd.routing.chance import Chance
from herd.routing.classic import Classic
from herd.routing.context import ClassicParameters
from projections.runner import abandoned, restore
from projections.traces import Trace, Traces, fold
from projections.view import VIEW, View, plain

HERE = Path(__file__).parent
SECOND = 1_000_000_000
GIB = 1024**3

MODELS: dict[str, Model] = {
    "llama3.2:3b": Model(
        name="llama3.2:3b",
        size_bytes=2 * GIB,
        family="llama",
        context_length=131072,
        capabilities=("completion", "tools"),
    ),
    "qwen3:14b": Model(
        name="qwen3:14b", size_bytes=9 * GIB, family="qwen3", context_length=40960, capabilities=("completion", "tools")
    ),
    "llama3.3:70b": Model(
        name="llama3.3:70b", size_bytes=40 * GIB, family="llama", context_length=131072, capabilities=("completion",)
    ),
    "nomic-embed-text:latest": Model(
        name="nomic-embed-text:latest", size_bytes=GIB // 4, family="nomic-bert", capabilities=("embedding",)
    ),
}


class Machine(msgspec.Struct, frozen=True):
    """A machine as it really is; the router only knows what it reports."""

    name: str
    hardware: Hardware
    models: tuple[str, ...]
    tokens_per_s: float
    """For a model of 1 GiB."""


MACHINES = (
    Machine(
        "ash",
        Hardware(arch="x86_64", chip="GeForce RTX 4090", cores=16, memory_total_gib=64.0, memory_bandwidth_gbps=1008.0),
        ("llama3.2:3b", "qwen3:14b", "nomic-embed-text:latest"),
        400.0,
    ),
    Machine(
        "birch",
        Hardware(arch="arm64", chip="Apple M2 Ultra", cores=24, memory_total_gib=128.0, memory_bandwidth_gbps=800.0),
        ("llama3.2:3b", "qwen3:14b", "llama3.3:70b"),
        250.0,
    ),
    Machine("cedar", Hardware(arch="x86_64", cores=8, memory_total_gib=32.0), ("llama3.2:3b",), 30.0),
)


class Story:
    """A fleet of machines, a router core, and an agenda; time jumps from one entry to the next."""

    def __init__(self, seed: int) -> None:
        self.chance = Chance(seed)
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock, "router-1")
        self.agenda: list[tuple[int, int, Callable[[], object]]] = []
        self.machines = {machine.name: machine for machine in MACHINES}
        self.loaded: dict[str, list[str]] = {machine.name: [] for machine in MACHINES}
        self.dead: set[str] = set()
        self.lines: dict[tuple[str, str], list[Request]] = {}
        self.requests = 0
        self.start_router()
        for machine in MACHINES:
            self.join(machine)

    def start_router(self) -> None:
        """Begin, or begin again after a crash: with what the log says, and nothing else."""
        policy = Classic(ClassicParameters())
        view = restore(self.store)
        self.core = Core(self.store, self.clock, policy, view, seed=self.chance.bits())
        endings = abandoned(view)
        for ending in endings:
            self.core.record(ending)
        if endings:
            self.core.record(RouterRecovered(abandoned=len(endings)))
        self.core.record(RouterStarted(version="0.1.0", host="0.0.0.0", port=11435, pid=4711))
        self.core.record(
            PolicyPromoted(policy=policy.name, policy_hash=policy.hash, parameters=policy.parameters, by="start")
        )

    def join(self, machine: Machine) -> None:
        name = machine.name
        engine = Engine(version="0.12.6")
        self.core.record(NodeJoined(node=name, url=f"http://{name}:11434", engine=engine, hardware=machine.hardware))
        self.core.record(NodeInventoryChanged(node=name, models=tuple(MODELS[model] for model in machine.models)))
        self.core.record(NodeStatusChanged(node=name, status="online", was="offline"))
        self.report(name, keyframe=True)

    def report(self, name: str, *, keyframe: bool = False) -> None:
        machine = self.machines[name]
        used = 6.0 + sum(MODELS[model].size_bytes / GIB for model in self.loaded[name])
        total = machine.hardware.memory_total_gib
        known: dict[str, Any] = {}
        if keyframe:
            known = {
                "thermal": Thermal(state="nominal", temperature_c=41.5, source="coretemp"),
                "disk": Disk(total_gib=931.0, used_gib=300.0, available_gib=631.0),
                "engine_up": True,
                "clock_skew_s": 0,
            }
            if name == "birch":
                known["capacity"] = Capacity(mode="learned_high", availability=0.8, days_observed=21.0)
        self.core.record(
            NodeReported(
                node=name,
                keyframe=keyframe,
                cpu_pct=self.chance.below(900) / 10,
                memory=Memory(used_gib=round(used, 2), available_gib=round(total - used, 2)),
                **known,
            )
        )

    def at(self, s: float, action: Callable[[], object]) -> None:
        """Do something `s` seconds from now."""
        heappush(self.agenda, (self.clock.now() + int(s * SECOND), len(self.agenda) + self.requests * 1000, action))

    def run(self, *, until_s: float | None = None) -> None:
        """Work through the agenda, to its end or to a time from now."""
        end = None if until_s is None else self.clock.now() + int(until_s * SECOND)
        while self.agenda and (end is None or self.agenda[0][0] <= end):
            when, _, action = heappop(self.agenda)
            self.clock.advance(ns=when - self.clock.now())
            action()
        if end is not None:
            self.clock.advance(ns=end - self.clock.now())

    def ask(self, model: str, *, tokens: int = 100, answer: int = 200, ending: Outcome = "completed") -> "Request":
        self.requests += 1
        request = Request(self, f"{self.requests:032x}", model, tokens, answer, ending)
        request.arrive()
        return request

    def kill(self, name: str) -> None:
        """Let a machine die: its streams break at once, its line is tried elsewhere, its silence is noticed later."""
        self.dead.add(name)
        lines = [line for (node, _), line in self.lines.items() if node == name]
        for line in lines:
            for request in list(line):
                request.lose_node()
        self.at(15, lambda: self.silent(name, "degraded", 15_000))
        self.at(30, lambda: self.silent(name, "offline", 30_000))

    def silent(self, name: str, status: Any, silent_ms: int) -> None:
        was = self.core.view.fleet.nodes[name].status
        self.core.record(NodeStatusChanged(node=name, status=status, was=was, why="silent", silent_ms=silent_ms))

    def lines_to_bytes(self) -> bytes:
        """Return the log with ids that do not depend on the process that made it."""
        log = list(self.store.read())
        names = {recorded.id: f"{recorded.seq:032x}" for recorded in log}
        return b"".join(
            dump(replace(each, id=names[each.id], cause=names[each.cause] if each.cause else None)) + b"\n"
            for each in log
        )


class Request:
    """One client's question on its way through the fleet."""

    def __init__(self, story: Story, name: str, model: str, tokens: int, answer: int, ending: Outcome) -> None:
        self.story = story
        self.name = name
        self.model = model
        self.tokens = tokens
        self.answer = answer
        self.ending: Outcome = ending
        self.node = ""
        self.attempt = 0
        self.excluded: tuple[str, ...] = ()
        self.phase = "new"
        self.load_ms = 0
        self.received: RequestReceived | None = None
        self.cause = ""

    def arrive(self) -> None:
        kind: Kind = "embed" if "embed" in self.model else "chat"
        self.received = RequestReceived(
            request=self.name,
            kind=kind,
            dialect="ollama" if self.story.requests % 3 else "openai",
            path={"embed": "/api/embed", "chat": "/api/chat"}[kind],
            model=self.model,
            asked=self.model.removesuffix(":latest"),
            streaming=kind == "chat",
            client=f"192.168.1.{20 + self.story.requests % 4}",
            tokens_estimated=self.tokens,
            tags=("nightly",) if self.story.requests % 5 == 0 else (),
            body_bytes=self.tokens * 4 + 120,
        )
        self.cause = self.story.core.record(self.received).id
        self.place()

    def place(self) -> None:
        assert self.received is not None
        _, chosen = self.story.core.choose(
            self.received, cause=self.cause, attempt=self.attempt + 1, excluded=self.excluded
        )
        if chosen.node is None:
            failed = bool(self.attempt)
            error = "no node left to try" if failed else f"model '{self.model}' not found"
            self.finish("failed" if failed else "rejected", status=502 if failed else 404, error=error)
            return
        self.attempt += 1
        self.node = chosen.node
        line = self.story.lines.setdefault((self.node, self.model), [])
        line.append(self)
        if len(line) > 1:
            self.phase = "waiting"
            self.story.core.record(
                RequestEnqueued(
                    request=self.name, attempt=self.attempt, node=self.node, model=self.model, ahead=len(line) - 2
                )
            )
        else:
            self.dispatch()

    def dispatch(self) -> None:
        story, attempt = self.story, self.attempt
        self.phase = "running"
        story.core.record(RequestDispatched(request=self.name, attempt=attempt, node=self.node, model=self.model))
        if self.node in story.dead:
            story.at(0.02, self.lose_node)
            return
        size = max(1.0, MODELS[self.model].size_bytes / GIB)
        self.load_ms = 12
        if self.model not in story.loaded[self.node]:
            self.load_ms = int(size * 350)
            story.loaded[self.node].append(self.model)
            resident = tuple(
                Resident(name=name, size_bytes=MODELS[name].size_bytes, context_length=8192)
                for name in story.loaded[self.node]
            )
            story.at(
                self.load_ms / 1e3, lambda: story.core.record(NodeResidencyChanged(node=self.node, loaded=resident))
            )
        speed = story.machines[self.node].tokens_per_s / size
        first_s = (self.load_ms + self.prompt_ms(speed)) / 1e3
        story.at(first_s, lambda: self.begin(attempt))
        if self.ending != "cancelled":
            story.at(first_s + self.generate_ms(speed) / 1e3, lambda: self.complete(attempt, speed))

    def prompt_ms(self, speed: float) -> int:
        return int(self.tokens / (speed * 8) * 1000) + 1

    def generate_ms(self, speed: float) -> int:
        return int(self.answer / speed * 1000) + 1

    def begin(self, attempt: int) -> None:
        if self.phase == "running" and self.attempt == attempt:
            self.phase = "answering"
            self.story.core.record(RequestFirstToken(request=self.name, attempt=attempt, node=self.node))
            if self.ending == "cancelled":
                self.story.at(0.4, lambda: self.finish("cancelled"))

    def complete(self, attempt: int, speed: float) -> None:
        if self.phase != "answering" or self.attempt != attempt:
            return
        if self.ending == "incomplete":
            self.finish("incomplete", status=200, error="the stream ended without its last line")
            return
        written = 0 if self.ending == "no_output" else self.answer
        figures: dict[str, Any] = {"finish_reason": "stop"} if self.answer > 0 else {}
        self.finish(
            self.ending,
            status=200,
            prompt_tokens=self.tokens,
            completion_tokens=written,
            load_ms=self.load_ms,
            prompt_ms=self.prompt_ms(speed),
            generate_ms=self.generate_ms(speed),
            answer_bytes=written * 4,
            **figures,
        )

    def lose_node(self) -> None:
        """The machine is gone: after the first byte that is the end, before it another machine is asked."""
        if self.phase == "answering":
            self.finish("failed", status=200, error=f"{self.node} broke off the answer")
        elif self.phase in ("running", "waiting"):
            self.leave()
            self.story.core.record(
                RequestAttemptFailed(
                    request=self.name,
                    attempt=self.attempt,
                    node=self.node,
                    model=self.model,
                    cause="connect",
                    message=f"{self.node} cannot be reached",
                )
            )
            self.excluded += (self.node,)
            self.place()

    def finish(self, outcome: Outcome, **known: Any) -> None:
        self.leave()
        self.phase = "ended"
        self.story.core.record(
            RequestFinished(
                request=self.name,
                outcome=outcome,
                node=self.node or None,
                model=self.model,
                attempts=self.attempt,
                **known,
            )
        )

    def leave(self) -> None:
        """Leave the line, and let the next one in."""
        line = self.story.lines.get((self.node, self.model), [])
        if self not in line:
            return
        first = line[0] is self
        line.remove(self)
        if first and line and self.node not in self.story.dead:
            self.story.at(0, line[0].wake)

    def wake(self) -> None:
        if self.phase == "waiting":
            self.dispatch()


def hour() -> bytes:
    """An ordinary hour: loads, lines, an embedding now and then, a drain, and every way in which a request can end."""
    story = Story(seed=1)
    for minute in range(1, 60):
        for name in story.machines:
            if (minute + len(name)) % 3 == 0:
                story.at(minute * 60, lambda name=name, full=minute % 15 == 0: story.report(name, keyframe=full))
    story.at(50 * 60, lambda: story.core.record(NodeDrainRequested(node="cedar", by="192.168.1.20")))
    unusual: dict[int, Outcome] = {7: "cancelled", 12: "incomplete", 18: "no_output"}
    moment = 60.0
    for number in range(28):
        moment += story.chance.below(180) if number % 4 else 0.2
        model = list(MODELS)[(0, 0, 1, 0, 3, 1, 2)[story.chance.below(7)]]
        tokens, answer = 20 + story.chance.below(900), 0 if "embed" in model else 30 + story.chance.below(300)
        ending = unusual.get(number, "completed")
        story.at(
            moment,
            lambda model=model, tokens=tokens, answer=answer, ending=ending: story.ask(
                model, tokens=tokens, answer=answer, ending=ending
            ),
        )
    story.at(1500, lambda: story.ask("mistral:7b"))
    story.run()
    story.core.record(RouterStopped(why="SIGTERM"))
    return story.lines_to_bytes()


def node_dies() -> bytes:
    """A machine dies while it answers one request and others wait for it."""
    story = Story(seed=2)
    story.at(1, lambda: story.ask("qwen3:14b", answer=600))
    for n in range(4):
        story.at(2 + n / 10, lambda: story.ask("qwen3:14b", answer=300))
    story.at(12, lambda: story.kill(max(story.lines, key=lambda place: len(story.lines[place]))[0]))
    story.at(13, lambda: story.ask("llama3.2:3b"))
    story.at(60, lambda: story.ask("qwen3:14b"))
    story.run()
    return story.lines_to_bytes()


def restart() -> bytes:
    """A router is killed with requests open; the next one finishes them as abandoned and goes on."""
    story = Story(seed=3)
    story.ask("llama3.2:3b")
    story.run(until_s=30)
    for answer in (900, 100, 100):
        story.ask("qwen3:14b", answer=answer)
    story.ask("llama3.2:3b", answer=900)
    story.run(until_s=4)
    story.agenda.clear()
    story.lines.clear()
    story.clock.advance(s=20)
    story.start_router()
    for machine in MACHINES:
        story.report(machine.name, keyframe=True)
    story.ask("llama3.2:3b")
    story.run()
    return story.lines_to_bytes()


LOGS: dict[str, Callable[[], bytes]] = {"hour": hour, "node_dies": node_dies, "restart": restart}


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a log folds to."""

    traces: list[Trace]
    view: View


def state(log: list[Recorded]) -> State:
    """Fold a log."""
    view, traces, rows = VIEW.initial(), Traces(), list[Trace]()
    for recorded in log:
        view = VIEW.apply(view, recorded)
        traces, finals = fold(traces, recorded)
        rows += finals
    return State(view=view, traces=rows)


def read(name: str) -> list[Recorded]:
    """Return a golden log."""
    return [load(line) for line in (HERE / f"{name}.jsonl").read_bytes().splitlines()]


def spelled(folded: State) -> bytes:
    """Return a state as JSON that a person can read in a diff."""
    return msgspec.json.format(msgspec.json.encode(folded, enc_hook=plain, order="sorted"), indent=1) + b"\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--states", action="store_true", help="keep the logs")
    if not arguments.parse_args().states:
        for name, make in LOGS.items():
            (HERE / f"{name}.jsonl").write_bytes(make())
    for name in LOGS:
        (HERE / f"{name}.state.json").write_bytes(spelled(state(read(name))))


if __name__ == "__main__":
    main()
