"""One owner of the live view: record, fold and decide in one synchronous step, so no two requests get one last slot.

Nothing here awaits. What is slow (disk, network, a node) happens elsewhere and comes back as another event. A process
has one core, and it lives on the event loop's thread.
"""

from collections import deque
from collections.abc import Callable

from events.clock import Clock
from events.ids import Ids
from events.recorded import Recorded
from events.store import EventStore
from events.types import Event, RequestReceived, RouteChosen
from herd.routing.decide import decide
from herd.routing.policy import Ask, Chance, Policy
from projections.view import VIEW, View

Watcher = Callable[[Recorded], None]


class Core:
    """The single writer of the log and keeper of what it means."""

    def __init__(self, store: EventStore, clock: Clock, policy: Policy, view: View, *, seed: int) -> None:
        self.store = store
        self.clock = clock
        self.policy = policy
        self.view = view
        self._seeds = Chance(seed)
        self._ids = Ids()
        self._watchers: list[tuple[Watcher, tuple[type[Event], ...]]] = []
        self._hearers: dict[type[Event], tuple[Watcher, ...]] = {}
        """Who watches for which kind of event, as far as it was asked: most events interest nobody."""
        self._news: deque[tuple[Recorded, tuple[Watcher, ...]]] = deque()
        self._announcing = False

    def new_id(self) -> str:
        """Return a fresh request id."""
        return self._ids.new(self.clock.now())

    def watch(self, watcher: Watcher, *kinds: type[Event]) -> None:
        """Call `watcher` after each event of these kinds (none: of all) has been folded, in the order of the log.

        It must return at once and must not raise. It may record: what it records is folded at once, and announced when
        all have heard of the event before.
        """
        self._watchers.append((watcher, kinds))
        self._hearers.clear()

    def record(self, event: Event, *, cause: str | None = None, at: int | None = None) -> Recorded:
        """Order an event, fold it into the view and return it; the disk follows by itself."""
        recorded = self.store.append(event, cause=cause, at=at)
        self.view = VIEW.apply(self.view, recorded)
        hearers = self._hearers.get(type(event))
        if hearers is None:
            hearers = self._hearers_of(type(event))
        if hearers:
            self._news.append((recorded, hearers))
            if not self._announcing:
                self._announce()
        return recorded

    def _hearers_of(self, kind: type[Event]) -> tuple[Watcher, ...]:
        hearers = tuple(watcher for watcher, kinds in self._watchers if not kinds or kind in kinds)
        self._hearers[kind] = hearers
        return hearers

    def _announce(self) -> None:
        self._announcing = True
        try:
            while self._news:
                recorded, hearers = self._news.popleft()
                for watcher in hearers:
                    watcher(recorded)
        finally:
            self._announcing = False

    def choose(
        self, received: RequestReceived, *, cause: str, attempt: int = 1, excluded: tuple[str, ...] = ()
    ) -> tuple[Recorded, RouteChosen]:
        """Decide where a request goes, and record the decision with all that led to it.

        The event's `node` is None when nobody can serve; its `eliminated` says why.
        """
        now = self.store.stamp()
        seed = self._seeds.bits()
        ask = Ask.of(received, attempt=attempt, excluded=excluded)
        decision = decide(self.view, ask, self.policy, Chance(seed), now=now)
        chosen = RouteChosen(
            request=received.request,
            attempt=attempt,
            model=received.model,
            policy=self.policy.name,
            policy_hash=self.policy.hash,
            node=decision.node,
            score=decision.score,
            signals=self.policy.signals,
            candidates=decision.candidates,
            eliminated=decision.eliminated,
            excluded=excluded,
            runner_up=decision.runner_up,
            margin=decision.margin,
            propensity=decision.propensity,
            seed=seed,
            seen=self.view.seq,
        )
        return self.record(chosen, cause=cause, at=now), chosen
