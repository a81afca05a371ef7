"""An exported log is read by people, by other programs and by later releases."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import jsonl
from events.codec import CODEC, Codec, tag
from events.recorded import Recorded
from events.store import StoreError, UnknownEvent
from events.types import Event, RequestDispatched
from tests.events.every_event import EVENTS, INTEGERS, TEXT, any_event, example
from tests.events.test_codec import UPCASTS, Renamed, same

GOLDEN = Path(__file__).parent / "golden" / "every_event.jsonl"


@given(any_event(), INTEGERS, INTEGERS, TEXT, TEXT, st.none() | TEXT)
def test_a_line_is_what_was_recorded(event: Event, seq: int, at: int, id_: str, writer: str, cause: str | None) -> None:
    recorded = Recorded(seq=seq, id=id_, at=at, writer=writer, writer_seq=seq, event=event, cause=cause)
    line = jsonl.dump(recorded)
    assert b"\n" not in line
    found = jsonl.load(line)
    assert same(found.event, event)
    assert msgspec.structs.replace(found, event=event) == recorded


def test_a_line_is_flat_and_readable() -> None:
    event = RequestDispatched(request="r", attempt=1, node="ash", model="m")
    line = jsonl.dump(Recorded(seq=3, id="ab", at=5, writer="w", writer_seq=2, event=event, cause="aa"))
    assert line == (
        b'{"seq":3,"id":"ab","at":5,"writer":"w","writer_seq":2,"cause":"aa","schema":1,'
        b'"event":{"type":"request.dispatched","request":"r","attempt":1,"node":"ash","model":"m"}}'
    )


@pytest.mark.parametrize("cls", EVENTS, ids=tag)
def test_every_event_has_a_golden_line(cls: type[Event]) -> None:
    """Lines are added, never changed: each stands for logs that exist. The line to add is in the failure's message."""
    wanted = f'"schema":{cls.schema},"event":{{"type":"{tag(cls)}"'
    fresh = Recorded(seq=1, id="0" * 32, at=1, writer="golden", writer_seq=1, event=example(cls), schema=cls.schema)
    assert wanted in GOLDEN.read_text(encoding="utf-8"), f"add to {GOLDEN.name}: {jsonl.dump(fresh).decode()}"


def test_golden_lines_read_as_they_were_written() -> None:
    for line in GOLDEN.read_bytes().splitlines():
        recorded = jsonl.load(line)
        if recorded.schema == recorded.event.schema:
            assert jsonl.dump(recorded) == line


def test_an_event_that_was_upcast_is_written_in_its_new_version() -> None:
    codec = Codec(Renamed, UPCASTS)
    old = b'{"seq":1,"id":"a","at":1,"writer":"w","writer_seq":1,"schema":1,"event":{"type":"test.renamed","ms":1500}}'
    recorded = jsonl.load(old, codec)
    assert recorded.schema == 1
    assert jsonl.load(jsonl.dump(recorded, codec), codec).event == recorded.event == Renamed(elapsed_s=1.5)


def test_a_line_without_a_cause_may_leave_it_out() -> None:
    payload = CODEC.spell(RequestDispatched(request="r", attempt=1, node="ash", model="m"))
    line = b'{"seq":1,"id":"a","at":1,"writer":"w","writer_seq":1,"event":' + payload + b"}"
    assert jsonl.load(line).cause is None


@pytest.mark.parametrize("line", [b"", b"no", b"{}", b"\xff\xfe", b'{"seq":"1"}', b"[1]"])
def test_a_line_that_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(StoreError, match="line"):
        jsonl.load(line)


def test_a_line_of_a_later_release_says_so() -> None:
    line = b'{"seq":1,"id":"a","at":1,"writer":"w","writer_seq":1,"schema":1,"event":{"type":"node.teleported"}}'
    with pytest.raises(UnknownEvent, match=r"node\.teleported"):
        jsonl.load(line)
