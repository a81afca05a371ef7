"""Runs a store into a real limit and out of it again, and reports what became of the log."""

import asyncio
import json
import resource
import sys
from contextlib import closing
from pathlib import Path

from events.clock import SystemClock
from events.sqlite import SQLiteStore, database
from events.store import StoreUnavailable
from events.types import LogInterrupted, RequestDispatched

EVENT = RequestDispatched(request="r", attempt=1, node="ash", model="m" * 500)


async def run(path: Path) -> dict[str, object]:
    store = SQLiteStore.open(path, clock=SystemClock(), writer="test", queue_max=300)
    await store.flushed(store.append(EVENT).seq)
    wal = path.with_name(f"{path.name}-wal")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 100_000, hard))
    failure = ""
    while not failure:
        try:
            await store.flushed(store.append(EVENT).seq)
        except StoreUnavailable as error:
            failure = str(error)
    for _ in range(400):
        store.append(EVENT)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    while True:
        try:
            await store.flushed(store.append(EVENT).seq)
            break
        except StoreUnavailable:
            await asyncio.sleep(0.01)  # it has not tried again yet
    found = list(store.read())
    state = store.state
    await store.close()
    with closing(database.connect_reader(path)) as connection:
        (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    return {
        "failure": failure,
        "lost": state.lost,
        "head": state.head,
        "positions": [recorded.seq for recorded in found],
        "interrupted": [each.event.lost for each in found if isinstance(each.event, LogInterrupted)],
        "integrity": integrity,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Path(sys.argv[1])))))
