"""Whatever is appended, awaited, reread and reopened in whatever order, a log is a list."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from events.clock import ManualClock
from events.codec import CODEC
from events.memory import MemoryStore
from events.recorded import Recorded
from events.sqlite import SQLiteStore
from events.store import EventStore
from events.types import Event, NodeReported, RouteChosen
from tests.events.databases import new_log
from tests.events.every_event import any_event

ENVELOPE = [name for name in Recorded.__struct_fields__ if name != "event"]


class History(RuleBasedStateMachine):
    """Any use of a store, next to the list that it should be."""

    durable_across_restarts = True

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.loop = asyncio.Runner()
        self.clock = ManualClock()
        self.path = new_log(Path(self.directory.name) / "log.db")
        self.store = self.opened()
        self.log: list[Recorded] = []
        self.given: dict[str, Recorded] = {}

    def opened(self) -> EventStore:
        raise NotImplementedError

    def run(self, make: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return await make()

        return self.loop.run(call())

    @rule(event=any_event(), ns=st.integers(0, 10**12))
    def append(self, event: Event, ns: int) -> None:
        self.clock.advance(ns=ns)
        self.log.append(self.store.append(event, cause=self.log[-1].id if self.log else None))

    @rule(event=any_event(), at=st.integers(0, 2**62))
    def append_at(self, event: Event, at: int) -> None:
        recorded = self.store.append(event, at=at)
        assert recorded.at == max([at, *(before.at for before in self.log[-1:])])
        self.log.append(recorded)

    @rule(event=any_event(), name=st.sampled_from(["a", "b", "01a2052e65af70088d5cdd6496bdee00"]))
    def append_with_id(self, event: Event, name: str) -> None:
        recorded = self.store.append(event, id=name)
        if name in self.given:
            assert CODEC.spell(recorded.event) == CODEC.spell(self.given[name].event)
            assert recorded.seq == self.given[name].seq
        else:
            self.given[name] = recorded
            self.log.append(recorded)

    @rule(events=st.lists(any_event(), max_size=4), times=st.sampled_from([1, 1, 150]))
    def append_all(self, events: list[Event], times: int) -> None:
        self.log += self.store.append_all(events * times)

    @rule()
    def flush(self) -> None:
        self.run(lambda: self.store.flushed(len(self.log)))
        assert self.store.state.durable == len(self.log)

    @rule(data=st.data(), backwards=st.booleans(), only=st.sampled_from([None, (NodeReported, RouteChosen)]))
    def read(self, data: st.DataObject, backwards: bool, only: tuple[type[Event], ...] | None) -> None:
        self.run(lambda: self.store.flushed(len(self.log)))
        after = data.draw(st.integers(0, len(self.log)))
        until = data.draw(st.none() | st.integers(0, len(self.log)))
        wanted = [
            recorded.seq for recorded in self.log[after:until] if only is None or isinstance(recorded.event, only)
        ]
        found = [each.seq for each in self.store.read(after, until=until, types=only, backwards=backwards)]
        assert found == (wanted[::-1] if backwards else wanted)

    @precondition(lambda self: self.durable_across_restarts)
    @rule()
    def reopen(self) -> None:
        self.run(self.store.close)
        self.store = self.opened()

    @invariant()
    def positions_are_gapless(self) -> None:
        assert self.store.state.head == len(self.log)
        assert [recorded.seq for recorded in self.log[-200:]] == list(range(len(self.log) + 1))[1:][-200:]
        assert self.log == sorted(self.log, key=lambda recorded: recorded.at)

    def teardown(self) -> None:
        self.run(lambda: self.store.flushed(len(self.log)))
        found = list(self.store.read())
        assert [self.line(recorded) for recorded in found] == [self.line(recorded) for recorded in self.log]
        self.run(self.store.close)
        self.loop.close()
        self.directory.cleanup()

    @staticmethod
    def line(recorded: Recorded) -> tuple[object, ...]:
        """All of it, in a form in which NaN equals itself."""
        return (*CODEC.encode(recorded.event), *(getattr(recorded, name) for name in ENVELOPE))


class SQLiteHistory(History):
    def opened(self) -> EventStore:
        return SQLiteStore.open(self.path, clock=self.clock, writer="test")


class MemoryHistory(History):
    durable_across_restarts = False

    def opened(self) -> EventStore:
        return MemoryStore(self.clock, writer="test")


TestSQLiteHistory = SQLiteHistory.TestCase
TestSQLiteHistory.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestMemoryHistory = MemoryHistory.TestCase
TestMemoryHistory.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
