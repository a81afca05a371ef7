"""How long a router with a long history takes until it can route, and how long its loop is ever blocked.

    python -m bench.start [--events 1000000]

Start: opening a log of that many events (telemetry and requests of 20 nodes), taking it over, restoring the view and
deciding once; imports are not counted. With a snapshot as after an orderly stop or a crash (at most 10,000 events old),
and without any. Loop: the duration of single turns of the router's loop while it serves 8 streams, from a task that
never sleeps; turns in which nothing happened do not count.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import uvloop

from bench import router as bench
from events.clock import ManualClock, SystemClock
from events.sqlite import SQLiteStore
from events.types import (
    Event,
    Memory,
    Model,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeResidencyChanged,
    NodeStatusChanged,
    RequestDispatched,
    RequestFinished,
    RequestReceived,
    Resident,
)
from herd.app import running
from herd.core import Core
from herd.routing import POLICIES
from herd.settings import RouterSettings, load
from projections import runner
from projections.tables import TraceTable
from projections.view import VIEW

NODES = 20
PAGE = 2_000
#: A turn shorter than this only asked the system whether anything had happened, seconds.
IDLE_TURN_S = 20e-6


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder:
        path = Path(folder) / "latency.db"
        uvloop.run(_write(path, options.events))
        cold = _start_s(path)
        uvloop.run(_snapshot(path, behind=9_999))
        warm = statistics.median(_start_s(path) for _ in range(5))
    turns = uvloop.run(_turns())
    rows = [
        (f"start to first decision, {options.events:,} events, snapshot + 10,000, s", warm, 0.3, 2.0),
        ("one turn of the loop, p99, ms", turns[int(len(turns) * 0.99)] * 1e3, 1.0, 5.0),
    ]
    print("| figure | reached | goal | floor | |\n|---|---:|---:|---:|---|")
    for title, value, goal, floor in rows:
        verdict = "goal" if value <= goal else "floor" if value <= floor else "MISSED"
        print(f"| {title} | {value:.3f} | ≤ {goal} | ≤ {floor} | {verdict} |")
    print(f"\nWithout a snapshot the same start takes {cold:.1f} s. Longest turn seen: {turns[-1] * 1e3:.1f} ms.")
    return 0 if all(value <= floor for _, value, _, floor in rows) else 1


def _history(count: int) -> Iterator[Event]:
    """Yield a history: three readings of machines for each request of three events."""
    loaded = (Resident(name="m:8b", size_bytes=5 << 30, context_length=8192),)
    for number in range(NODES):
        name = f"n{number}"
        yield NodeJoined(node=name, url="http://127.0.0.1:1", parallel=4)
        yield NodeStatusChanged(node=name, status="online")
        yield NodeInventoryChanged(node=name, models=(Model(name="m:8b", size_bytes=5 << 30),))
        yield NodeResidencyChanged(node=name, loaded=loaded)
    for number in range(count // 6):
        for turn in range(3):
            memory = Memory(used_gib=10.0 + number % 7, available_gib=50.0)
            yield NodeReported(node=f"n{(number * 3 + turn) % NODES}", cpu_pct=float(number % 100), memory=memory)
        name, node = f"r{number}", f"n{number % NODES}"
        yield RequestReceived(
            request=name, kind="chat", dialect="ollama", path="/api/chat", model="m:8b", asked="m:8b", streaming=True
        )
        yield RequestDispatched(request=name, attempt=1, node=node, model="m:8b")
        yield RequestFinished(request=name, outcome="completed", node=node, model="m:8b", attempts=1, status=200)


async def _write(path: Path, count: int) -> None:
    clock = ManualClock()
    store = SQLiteStore.open(path, clock=clock, writer="bench", durability="normal", projections=[TraceTable(path)])
    recorded = None
    for number, event in enumerate(_history(count)):
        clock.advance(ns=1_000_000)
        recorded = store.append(event)
        if number % PAGE == 0:
            await store.flushed(recorded.seq)
    await store.close()


async def _snapshot(path: Path, *, behind: int) -> None:
    """Leave a snapshot that many events before the end."""
    store = SQLiteStore.open(path, clock=SystemClock(), writer="bench", projections=[TraceTable(path)])
    until = store.state.head - behind
    view = VIEW.initial()
    for recorded in store.read(0, until=until):
        view = VIEW.apply(view, recorded)
    runner.save(store, view)
    await store.close()


def _start_s(path: Path) -> float:
    async def start() -> float:
        began = time.perf_counter()
        clock = SystemClock()
        store = SQLiteStore.open(path, clock=clock, writer="bench", projections=[TraceTable(path)])
        core = Core(store, clock, POLICIES["classic"]({}), runner.restore(store), seed=1)
        received = RequestReceived(
            request=core.new_id(), kind="chat", dialect="ollama", path="/api/chat", model="m:8b", asked="m:8b",
            streaming=True,
        )  # fmt: skip
        _, chosen = core.choose(received, cause=core.record(received).id)
        took = time.perf_counter() - began
        assert chosen.node is not None
        await store.close()
        return took

    return uvloop.run(start())


async def _turns() -> list[float]:
    """Return the durations of the loop's busy turns while 8 streams run, sorted, in seconds."""
    bench.build()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-bench-")))
        node = stack.enter_context(bench.backend(cpu=1))
        flags = {"host": "127.0.0.1", "port": 0, "data_dir": str(folder / "herd"), "mdns": False}
        async with running(load(RouterSettings, "FLEET_", flags=flags, environment={})) as router:
            async with httpx.AsyncClient() as client:
                await client.post(f"{router.url}/heartbeat", json=bench.heartbeat("bench-0", node, bench.PARALLEL))
            scenario = next(scenario for scenario in bench.SCENARIOS if scenario.name == "st8")
            body = bench.body_file(folder, scenario)
            command = [str(bench.BUILD / "loadgen"), str(router.port), scenario.path, "8", "5", str(body), "0"]
            load_generator = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            turns: list[float] = []
            last = time.perf_counter()
            while load_generator.returncode is None:
                await asyncio.sleep(0)
                now = time.perf_counter()
                if now - last > IDLE_TURN_S:
                    turns.append(now - last)
                last = now
            assert load_generator.stdout is not None
            told = json.loads(await load_generator.stdout.read())
            assert told["errors"] == told["not_200"] == 0, told
            return sorted(turns)


if __name__ == "__main__":
    sys.exit(main())
