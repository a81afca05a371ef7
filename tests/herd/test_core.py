"""Who watches the log hears of what it asked for, of each event once, and in the order of the log."""

from events.clock import ManualClock
from events.memory import MemoryStore
from events.recorded import Recorded
from events.types import Event, NodeLeft, RequestReceived, RouterStarted, RouterStopped
from herd.core import Core
from herd.routing import POLICIES
from projections.view import View
from tests.given import joined, received


def core() -> Core:
    clock = ManualClock()
    return Core(MemoryStore(clock), clock, POLICIES["classic"]({}), View(), seed=1)


def kinds(heard: list[Recorded]) -> list[type[Event]]:
    return [type(recorded.event) for recorded in heard]


def test_a_watcher_that_names_no_kind_hears_of_everything():
    heard: list[Recorded] = []
    router = core()
    router.watch(heard.append)
    recorded = [router.record(event) for event in (RouterStarted(version="1"), joined("ash"), received("r"))]
    assert heard == recorded


def test_a_watcher_hears_only_of_the_kinds_it_names():
    heard: list[Recorded] = []
    router = core()
    router.watch(heard.append, RequestReceived, NodeLeft)
    for event in (joined("ash"), received("r"), NodeLeft(node="ash"), RouterStopped()):
        router.record(event)
    assert kinds(heard) == [RequestReceived, NodeLeft]


def test_a_watcher_that_comes_late_hears_of_what_is_recorded_from_then_on():
    heard: list[Recorded] = []
    router = core()
    router.record(received("r"))
    router.watch(heard.append, RequestReceived)
    assert router.record(received("s")) == heard[0]


def test_what_a_watcher_records_is_folded_at_once_and_announced_when_all_have_heard_of_the_event_before():
    heard: list[str] = []
    router = core()

    def answers(_: Recorded) -> None:
        recorded = router.record(NodeLeft(node="ash"))
        heard.append("answered")
        assert router.view.seq == recorded.seq

    router.watch(answers, RequestReceived)
    router.watch(lambda recorded: heard.append(recorded.stream))
    router.record(received("r"))
    assert heard == ["answered", "request/r", "node/ash"]
