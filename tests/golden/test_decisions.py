"""A recorded history must be decided again to the same bits. `python -m tests.golden.make_decisions` renews the log."""

from typing import Any

import msgspec
import pytest

from events.jsonl import load
from events.recorded import Recorded
from events.types import RouteChosen
from herd.replay.verify import Report, verify
from herd.routing import POLICIES
from herd.routing.classic import Classic
from herd.routing.context import ClassicParameters
from tests.golden.make_decisions import PATH


def golden() -> list[Recorded]:
    return [load(line) for line in PATH.read_bytes().splitlines()]


def decisions() -> list[RouteChosen]:
    return [recorded.event for recorded in golden() if isinstance(recorded.event, RouteChosen)]


def pretending(**changed: Any) -> Report:
    """Verify with other weights under the recorded name: what a formula changed by mistake would do."""
    recorded = POLICIES["classic"]({})

    def other(_: dict[str, Any]) -> Classic:
        policy = Classic(msgspec.structs.replace(ClassicParameters(), **changed))
        policy.hash = recorded.hash
        return policy

    return verify(golden(), {"classic": other})


def test_the_recorded_policy_decides_the_same_again() -> None:
    report = verify(golden(), POLICIES)
    assert report.ok, [difference.sentence for difference in report.differences] or report
    assert report.identical == report.decisions == len(decisions())


def test_the_golden_log_holds_what_it_is_there_for() -> None:
    chosen = decisions()
    for place, signal in enumerate(POLICIES["classic"]({}).signals):
        points = {candidate.points[place] for decision in chosen for candidate in decision.candidates}
        assert len(points) > 1, f"{signal} says always the same"
    reasons = {eliminated.reason for decision in chosen for eliminated in decision.eliminated}
    assert reasons >= {"offline", "draining", "excluded", "model_absent", "memory_short"}
    assert any(decision.propensity < 1 for decision in chosen)
    assert any(decision.node is None for decision in chosen)
    assert any(decision.attempt == 2 for decision in chosen)


def test_doubling_every_weight_is_noticed_though_no_order_changes() -> None:
    weights = {
        name: 2 * value
        for name, value in POLICIES["classic"]({}).parameters.items()
        if not isinstance(value, bool) and not name.endswith("_threshold_gb")
    }
    report = pretending(**weights)
    assert not report.ok
    assert report.identical == sum(not decision.candidates for decision in decisions())
    assert any("points of thermal" in difference.what for difference in report.differences)


@pytest.mark.parametrize(
    "name", [n for n, value in POLICIES["classic"]({}).parameters.items() if not isinstance(value, bool)]
)
def test_a_small_change_of_any_weight_is_noticed(name: str) -> None:
    value = getattr(ClassicParameters(), name)
    # Thresholds lie between the sizes of real models; only a large step crosses one.
    changed = 4.0 if name.endswith("_threshold_gb") else value * 1.001
    assert pretending(**{name: changed}).differing > 0
