"""What histories of earlier days meant must not change unnoticed. Changed on purpose: `python -m tests.golden.make`."""

import msgspec
import pytest

from events.jsonl import dump, load
from projections.runner import verify
from projections.tables import to_row
from tests.golden.make import HERE, LOGS, read, spelled, state


@pytest.mark.parametrize("name", LOGS)
def test_a_golden_log_is_read_and_written_without_a_change(name: str):
    for line in (HERE / f"{name}.jsonl").read_bytes().splitlines():
        assert dump(load(line)) == line


@pytest.mark.parametrize("name", LOGS)
def test_a_golden_log_folds_to_its_stored_state(name: str):
    stored = msgspec.json.decode((HERE / f"{name}.state.json").read_bytes())
    assert msgspec.json.decode(spelled(state(read(name)))) == stored


@pytest.mark.parametrize("name", LOGS)
def test_a_golden_log_is_whole_and_every_request_in_it_ends_once(name: str):
    folded = state(read(name))
    found = verify(read(name), live=folded.view, traces=map(to_row, folded.traces))
    assert found.ok
    assert found.requests_open == 0
    terminal = [trace.request_id for trace in folded.traces if trace.status != "retried"]
    assert len(terminal) == len(set(terminal)) > 0


def test_a_machine_that_died_left_a_failed_answer_and_retried_requests():
    statuses = {(trace.status, trace.retry_count) for trace in state(read("node_dies")).traces}
    assert statuses == {("failed", 0), ("retried", 0), ("completed", 0), ("completed", 1)}


def test_a_restart_left_no_request_without_an_ending():
    failed = [trace.error_message for trace in state(read("restart")).traces if trace.status == "failed"]
    assert failed == ["the router stopped before the request ended"] * 4
