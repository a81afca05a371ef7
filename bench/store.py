"""What the event log costs, as ratios to what this machine's SQLite, disk and event loop could do in the same minute.

`python -m bench.store [--rounds N] [--directory DIR]` prints a table. Alternatives are run in turn and the median of
the rounds is taken, because absolute numbers on a shared machine say little; even so it wants a quiet one, because the
store needs two threads to be scheduled where its rivals need one. The limit written in C needs gcc and sqlite3.h.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import sqlalchemy as sa
import uvloop

from events.clock import SystemClock
from events.codec import CODEC
from events.ids import Ids
from events.sqlite import SQLiteStore, database, driver
from events.types import RequestFinished

HERE = Path(__file__).parent

EVENT = RequestFinished(
    request="0123456789abcdef0123456789abcdef",
    outcome="completed",
    node="workstation",
    model="llama3.1:8b-instruct-q4_K_M",
    attempts=1,
    status=200,
    prompt_tokens=1024,
    completion_tokens=256,
    finish_reason="stop",
    load_ms=1,
    prompt_ms=220,
    generate_ms=4100,
    answer_bytes=12345,
)

BATCH = 128
LOOPS = 64
REQUEST_S = 100e-6
WINDOW_S, WINDOWS = 0.4, 6
ACK_RATE = 3000

LABELS = {"c": "C", "core": "SQLAlchemy", "single": "one by one"}


def run(coroutine: Coroutine[Any, Any, float]) -> float:
    """Run on the event loop that the router uses."""
    return uvloop.run(coroutine)


def fresh(directory: Path, name: str) -> Path:
    """Return the path of a new, empty log."""
    path = directory / f"{name}.db"
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    database.prepare(path, None)
    return path


def opened(path: Path) -> SQLiteStore:
    return SQLiteStore.open(path, clock=SystemClock(), writer="bench")


# --- events per second, each durable, 128 at a time -----------------------------------------------------------------


def through_store(directory: Path) -> float:
    """Structs to acknowledged, through everything: order, thread, codec, log_head, wake-up."""

    async def measure() -> float:
        store = opened(fresh(directory, "store"))
        batches = 300
        start = perf_counter()
        for _ in range(batches):
            for _ in range(BATCH - 1):
                store.append(EVENT)
            await store.flushed(store.append(EVENT).seq)
        rate = batches * BATCH / (perf_counter() - start)
        await store.close()
        return rate

    return run(measure())


def through_store_at_once(directory: Path) -> float:
    """As many as come, awaited once: what the group commit makes of a flood."""

    async def measure() -> float:
        store = opened(fresh(directory, "flood"))
        start = perf_counter()
        for _ in range(40_000):
            store.append(EVENT)
        await store.flushed(store.state.head)
        rate = 40_000 / (perf_counter() - start)
        await store.close()
        return rate

    return run(measure())


def through_c(directory: Path) -> float:
    """The limit: SQLite's C interface with nothing around it."""
    size = len(CODEC.encode(EVENT)[1])
    program = HERE / "build" / "store_limit"
    command = [str(program), str(fresh(directory, "limit")), "38400", str(BATCH), str(size)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def through_sqlalchemy(directory: Path) -> float:
    """The usual way: Core's `insert()` with a list of dictionaries, one transaction for each batch."""
    path = fresh(directory, "core")
    engine = sa.create_engine(
        "sqlite://", module=driver.module, creator=lambda: _legacy(path), poolclass=sa.pool.StaticPool
    )
    table = sa.Table("events", sa.MetaData(), autoload_with=engine)
    ids, clock = Ids(), SystemClock()
    position, batches = 0, 100
    with engine.connect() as connection:
        start = perf_counter()
        for _ in range(batches):
            values: list[dict[str, Any]] = []
            for _ in range(BATCH):
                position += 1
                now = clock.now()
                codec, payload = CODEC.encode(EVENT)
                values.append(
                    {
                        "position": position,
                        "event_id": bytes.fromhex(ids.new(now)),
                        "at": now,
                        "type": 1,
                        "schema": 1,
                        "writer": 1,
                        "writer_seq": position,
                        "stream": EVENT.stream,
                        "cause": None,
                        "codec": codec,
                        "payload": bytes(payload),
                    }
                )
            with connection.begin():
                connection.execute(table.insert(), values)
        rate = batches * BATCH / (perf_counter() - start)
    engine.dispose()
    return rate


def _legacy(path: Path) -> Any:
    connection = driver.connect(str(path), check_same_thread=False)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def one_by_one(directory: Path) -> float:
    """One commit for each event, straight through the driver."""
    path, ids, clock = fresh(directory, "single"), Ids(), SystemClock()
    sql = f"INSERT INTO events VALUES ({','.join('?' * 11)})"
    with closing(database.connect_writer(path, "full")) as connection:
        start = perf_counter()
        for position in range(1, 2001):
            now = clock.now()
            codec, payload = CODEC.encode(EVENT)
            key = bytearray.fromhex(ids.new(now))
            connection.execute(sql, (position, key, now, 1, 1, 1, position, EVENT.stream, None, codec, payload))
        return 2000 / (perf_counter() - start)


# --- what the router pays -------------------------------------------------------------------------------------------


def append_us(directory: Path) -> float:
    """One `append` in µs, while the writer lingers."""

    async def measure() -> float:
        store = opened(fresh(directory, "append"))
        times: list[float] = []
        for _ in range(60):
            store.append(EVENT)  # wakes the writer, which then lingers
            start = perf_counter()
            for _ in range(300):
                store.append(EVENT)
            times.append((perf_counter() - start) / 300)
            await store.flushed(store.state.head)
        await store.close()
        return median(times) * 1e6

    return run(measure())


def saturated(directory: Path) -> float:
    """Share of its requests that a saturated loop still serves when each of them records two events.

    Windows with and without events alternate, because the rest of the machine changes faster than a round takes.
    """

    async def measure() -> float:
        store = opened(fresh(directory, "saturated"))
        shares: list[float] = []
        for _ in range(WINDOWS):
            bare = await _serve(None)
            shares.append(await _serve(store) / bare)
            await store.flushed(store.state.head)
        await store.close()
        return median(shares)

    return run(measure())


async def _serve(store: SQLiteStore | None) -> float:
    """Return the requests per second of one window."""
    start = perf_counter()
    end = start + WINDOW_S
    served = 0

    async def client() -> None:
        nonlocal served
        while perf_counter() < end:
            if store:
                store.append(EVENT)
            _work()
            if store:
                store.append(EVENT)
            served += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(client() for _ in range(LOOPS)))
    return served / (perf_counter() - start)


def _work() -> None:
    """Stand for a request: about 100 µs of Python."""
    total = 0
    for number in range(STEPS):
        total += number * number % 7


def _calibrate() -> int:
    def steps_in(steps: int) -> float:
        start = perf_counter()
        total = 0
        for number in range(steps):
            total += number * number % 7
        return perf_counter() - start

    return int(REQUEST_S * 100_000 / min(steps_in(100_000) for _ in range(20)))


STEPS = _calibrate()


def acknowledgements(directory: Path) -> tuple[float, float]:
    """Median and 99th percentile, in ms, of the wait for durability at 3 000 requests a second of two events each."""
    waits: list[float] = []

    async def measure() -> float:
        store = opened(fresh(directory, "ack"))

        async def request() -> None:
            store.append(EVENT)
            start = perf_counter()
            await store.flushed(store.append(EVENT).seq)
            waits.append(perf_counter() - start)

        tasks: set[asyncio.Task[None]] = set()
        start = perf_counter()
        for number in range(ACK_RATE * 2):
            due = start + number / ACK_RATE
            if perf_counter() < due:
                await asyncio.sleep(due - perf_counter())
            task = asyncio.ensure_future(request())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        await store.close()
        return 0.0

    run(measure())
    return median(waits) * 1e3, quantiles(waits, n=100)[98] * 1e3


def fsync_ms(directory: Path) -> float:
    """Median of an fsync after 4 KB, in ms."""
    times: list[float] = []
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            start = perf_counter()
            os.fsync(file.fileno())
            times.append(perf_counter() - start)
    return median(times) * 1e3


# --- the table ------------------------------------------------------------------------------------------------------


def built() -> bool:
    """Compile the limit; return False, and say why, where that cannot be done."""
    if not shutil.which("gcc"):
        print("no gcc: the limit in C is left out", file=sys.stderr)
        return False
    (HERE / "build").mkdir(exist_ok=True)
    command = ["gcc", "-O2", "-o", str(HERE / "build" / "store_limit"), str(HERE / "store_limit.c"), "-lsqlite3"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        print(f"the limit in C is left out: {found.stderr.splitlines()[0]}", file=sys.stderr)
    return found.returncode == 0


def rounds_of(rounds: int, measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Run all in turn, `rounds` times."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def ratio_of(ours: list[float], other: list[float]) -> float:
    """Return the median of the ratios within each round."""
    return median(one / another for one, another in zip(ours, other, strict=True))


def row(what: str, ours: str, other: str, ratio: float | None, goal: str, *, met: bool) -> None:
    share = f"{ratio:.2f}x" if ratio is not None else ""
    print(f"{what:<44} {ours:>12} {other:>24} {share:>8}   {goal:<22} {'met' if met else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to be measured; default: the temporary directory")
    options = parser.parse_args()
    print(f"SQLite {driver.version}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    size = len(CODEC.encode(EVENT)[1])
    print(f"an event is {size} bytes, a request {STEPS} steps of arithmetic; medians of {options.rounds}")
    with TemporaryDirectory(dir=options.directory) as name:
        table(Path(name), options.rounds)


def table(directory: Path, rounds: int) -> None:
    rates: dict[str, Callable[[], float]] = {
        "store": lambda: through_store(directory),
        "flood": lambda: through_store_at_once(directory),
        "core": lambda: through_sqlalchemy(directory),
        "single": lambda: one_by_one(directory),
    }
    if built():
        rates["c"] = lambda: through_c(directory)
    found = rounds_of(rounds, rates)
    kilo = {name: f"{median(rate) / 1000:.1f} k/s" for name, rate in found.items()}

    def compare(what: str, ours: str, other: str, least: float) -> None:
        ratio = ratio_of(found[ours], found[other])
        row(what, kilo[ours], f"{LABELS[other]} {kilo[other]}", ratio, f">= {least}x", met=ratio >= least)

    if "c" in found:
        compare("durable, 128 awaited at a time", "store", "c", 0.7)
        compare("durable, awaited once", "flood", "c", 0.7)
    compare("durable, 128 awaited at a time", "store", "core", 2)
    compare("durable, awaited once", "flood", "core", 2)
    compare("group commit", "flood", "single", 25)

    share = median(rounds_of(rounds, {"share": lambda: saturated(directory)})["share"])
    row("saturated loop, two events a request", "", "no events", share, ">= 0.92x", met=share >= 0.92)
    cost = median(rounds_of(rounds, {"append": lambda: append_us(directory)})["append"])
    row("one append", f"{cost:.2f} us", "", None, "<= 3 us", met=cost <= 3)

    acks = [(*acknowledgements(directory), fsync_ms(directory)) for _ in range(rounds)]
    p50, p99, fsync = (median(each) for each in zip(*acks, strict=True))
    limit = 3 * fsync + 1
    goal = f"<= {limit:.2f} ms"
    row(
        f"acknowledged at {ACK_RATE} req/s, p50", f"{p50:.2f} ms", f"fsync {fsync:.2f} ms", None, goal, met=p50 <= limit
    )
    row(f"acknowledged at {ACK_RATE} req/s, p99", f"{p99:.2f} ms", "", None, "<= 10 ms", met=p99 <= 10)


if __name__ == "__main__":
    main()
