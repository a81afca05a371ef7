"""Appends until it is killed, and says what was acknowledged: the victim of the crash tests."""

import asyncio
import random
import sys
from pathlib import Path

from events.clock import SystemClock
from events.sqlite import SQLiteStore
from events.types import NodeReported, RequestEnqueued


async def run(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = SQLiteStore.open(path, clock=SystemClock(), writer="victim", durability=chance.choice(["full", "normal"]))
    group = 0
    last = store.append(NodeReported(node="ash"))
    while True:
        for _ in range(chance.randint(1, 30)):
            store.append(NodeReported(node="ash", cpu_pct=chance.random()))
            size = chance.choice([1, 2, 5, 300])
            group += 1
            name = f"{seed}-{group}"
            event = RequestEnqueued(request=name, attempt=1, node="ash", model="m", ahead=size)
            last = store.append_all([event] * size)[-1]
        await store.flushed(last.seq)
        print(last.seq, flush=True)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
