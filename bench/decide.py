"""What one routing decision costs: `python -m bench.decide` prints microseconds for 4 and for 32 nodes."""

from timeit import repeat

from events.recorded import Recorded
from events.types import (
    Engine,
    Event,
    Hardware,
    Memory,
    Model,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeResidencyChanged,
    NodeStatusChanged,
    RequestDispatched,
    RequestReceived,
    Resident,
)
from herd.routing import POLICIES
from herd.routing.chance import Chance
from herd.routing.decide import decide
from herd.routing.policy import Ask
from projections.view import VIEW, View

NOW = 1_767_225_600_000_000_000
GB = 10**9


def fleet(count: int) -> View:
    """Return a fleet in which a third of the nodes is busy, a fifth is cold, and some bandwidths are unknown."""
    events: list[Event] = []
    for i in range(count):
        node = f"node-{i:02}"
        events += [
            NodeJoined(
                node=node,
                url=f"http://10.0.0.{i}:11434",
                engine=Engine(version="0.12.0"),
                hardware=Hardware(memory_total_gib=64, memory_bandwidth_gbps=(0, 200, 400, 546)[i % 4]),
                parallel=2,
            ),
            NodeReported(node=node, keyframe=True, memory=Memory(available_gib=40 - i), engine_up=True),
            NodeStatusChanged(node=node, status="online"),
            NodeInventoryChanged(
                node=node,
                models=tuple(
                    Model(name=f"model-{m}:8b", size_bytes=(5 + m) * GB, capabilities=("completion", "tools"))
                    for m in range(6)
                ),
            ),
        ]
        if i % 5:
            loaded = Resident(name="model-0:8b", size_bytes=6 * GB, context_length=8192)
            events.append(NodeResidencyChanged(node=node, loaded=(loaded,)))
        if i % 3 == 0:
            received = RequestReceived(
                request=f"r{i}", kind="chat", dialect="ollama", path="/api/chat", model="model-0:8b",
                asked="model-0:8b", streaming=True,
            )  # fmt: skip
            events += [received, RequestDispatched(request=f"r{i}", attempt=1, node=node, model="model-0:8b")]
    view = VIEW.initial()
    for seq, event in enumerate(events, start=1):
        view = VIEW.apply(view, Recorded(seq=seq, id="", at=NOW, writer="bench", writer_seq=seq, event=event))
    return view


def main() -> None:
    """Measure."""
    policy = POLICIES["classic"]({})
    ask = Ask(request="r", attempt=1, kind="chat", model="model-0:8b", tokens=900, needs=("tools",))
    for count in (4, 32):
        view = fleet(count)

        def one(view: View = view) -> None:
            decide(view, ask, policy, Chance(7), now=NOW)

        best = min(repeat(one, number=50, repeat=300)) / 50
        print(f"decide, {count:2} nodes, {len(policy.signals)} signals: {best * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
