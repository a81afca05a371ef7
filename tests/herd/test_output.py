"""What commands show to people is readable in a narrow window, and whole where a program or a file takes it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.recorded import Recorded
from events.types import RouteChosen
from herd.cli.events import sentence
from herd.cli.output import GAP, Column, count, duration, fitting, local_time, number, table, width
from herd.cli.settings import COLUMNS as SETTINGS
from herd.cli.settings import effective, shown
from herd.cli.status import NODES, Cpu, Disk, Engine, LoadedModel, Memory, Models, Node
from herd.cli.status import row as node_row
from herd.cli.traces import COLUMNS as TRACES
from herd.cli.traces import row as trace_row
from herd.settings import NODE_PREFIX, ROUTER_PREFIX, NodeSettings, RouterSettings, load
from projections.traces import Status, Trace

#: What real fleets have in their tables: ids of 32 digits, and models with names as long as their makers like.
LONG_MODEL = "qwen2.5-coder:32b-instruct-q4_K_M"
IDS = [f"019aaf3c5d1e7b0c8d0123456789ab{number:02}" for number in range(3)]


def trace(place: int, model: str, status: Status = "completed", error: str | None = None) -> Trace:
    known = status == "completed"
    return Trace(
        request_id=IDS[place],
        model=model,
        original_model=model,
        node_id="mac-studio" if known else "",
        score=83.12 if known else None,
        scores_breakdown={},
        status=status,
        latency_ms=12_345.6 if known else None,
        time_to_first_token_ms=230.4 if known else None,
        prompt_tokens=1250 if known else None,
        completion_tokens=400 if known else None,
        retry_count=0,
        fallback_used=False,
        excluded_nodes=(),
        client_ip="",
        original_format="ollama",
        error_message=error,
        timestamp=1_795_390_000.0,
        tags=(),
        finish_reason=None,
        estimated_tokens=None,
    )


FOUND = [
    trace(0, "llama3.2:3b"),
    trace(1, LONG_MODEL, "client_disconnected"),
    trace(2, "llama3.2:1b", "failed", "no node has llama3.2:1b; the nodes ash and oak have llama3.2:3b, try that one"),
]
FLEET = [
    Node(
        node_id="mac-studio",
        status="online",
        engine=Engine(version="0.13.1", up=True),
        cpu=Cpu(12.0),
        memory=Memory(192.0, 88.2),
        disk=Disk(512.3),
        ollama=Models(
            models_loaded=[LoadedModel("llama3.2:3b"), LoadedModel(LONG_MODEL), LoadedModel("nomic-embed-text:latest")],
            models_available=["a", "b"],
        ),
        last_heartbeat_age_s=2.1,
    ),
    Node(node_id="ash", status="degraded", engine=Engine(name="llama.cpp", version="b4567", up=False)),
]


def traces_table(width_columns: int | None) -> list[str]:
    return bare(
        table(
            TRACES, [trace_row(each) for each in FOUND], [e.error_message or "" for e in FOUND],
            width_columns=width_columns,
        )
    )  # fmt: skip


def fleet_table(width_columns: int | None) -> list[str]:
    return bare(table(NODES, [node_row(node) for node in FLEET], width_columns=width_columns))


def settings_table(width_columns: int | None) -> list[str]:
    router = effective(load(RouterSettings, ROUTER_PREFIX, environment={}), RouterSettings, ROUTER_PREFIX)
    node = effective(load(NodeSettings, NODE_PREFIX, environment={}), NodeSettings, NODE_PREFIX)
    rows = [(each.variable, shown(each), each.origin, each.about) for each in (*router, *node)]
    return bare(table(SETTINGS, rows, width_columns=width_columns))


def bare(lines: list[str]) -> list[str]:
    """Return lines without colours."""
    return [re.sub(r"\x1b\[\d*m", "", line) for line in lines]


@pytest.mark.parametrize("made", [traces_table, fleet_table, settings_table])
@pytest.mark.parametrize("columns", [80, 100, 120, 160])
def test_no_line_of_a_table_is_longer_than_the_terminal_is_wide(
    made: Callable[[int | None], list[str]], columns: int
) -> None:
    assert max(map(width, made(columns))) <= columns


def test_in_80_columns_traces_say_who_asked_what_when_and_how_it_ended() -> None:
    text = "\n".join(traces_table(80))
    assert LONG_MODEL in text
    assert "client_disconnected" in text
    assert "12.3 s" in text
    assert "The terminal is too narrow for: request, node, " in text
    assert "--json has all." in " ".join(text.split())


def test_a_wider_terminal_has_more_of_the_columns() -> None:
    headings = [len(re.split(r" {2,}", traces_table(columns)[0])) for columns in (80, 120, 200)]
    assert headings == sorted(set(headings))
    assert headings[-1] == len(TRACES)


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 140, 200, None])
def test_an_id_or_a_name_is_whole_or_absent(columns: int | None) -> None:
    text = "\n".join(traces_table(columns))
    for name in (*IDS, LONG_MODEL, "client_disconnected"):
        assert name in text or name[:8] not in text


def test_what_went_wrong_stands_under_its_row_folded_between_words() -> None:
    lines = traces_table(80)
    row = next(place for place, line in enumerate(lines) if "llama3.2:1b" in line)
    assert lines[row + 1] == "    no node has llama3.2:1b; the nodes ash and oak have llama3.2:3b, try that"
    assert lines[row + 2] == "    one"
    wide = traces_table(None)
    assert wide[-1].endswith("try that one")


@pytest.mark.parametrize("columns", [80, 120, None])
def test_models_in_memory_are_all_there_and_each_is_whole(columns: int | None) -> None:
    lines = fleet_table(columns)
    for model in FLEET[0].ollama.models_loaded:
        assert any(model.name in line for line in lines)
    assert len([line for line in lines if line.startswith("mac-studio")]) == 1


@pytest.mark.parametrize("columns", [80, 120, None])
def test_settings_show_their_source_in_any_window(columns: int | None) -> None:
    lines = settings_table(columns)
    assert lines[0].split()[:3] == ["variable", "value", "from"]
    assert any(re.fullmatch(r"FLEET_PORT +11435 +default( .*)?", line) for line in lines)
    assert ("Port to listen on." in "\n".join(lines)) is (columns != 80)


def test_what_goes_into_a_pipe_has_every_column_and_one_line_for_each_row() -> None:
    for lines, rows, columns in ((traces_table(None), 4, TRACES), (fleet_table(None), 2, NODES)):
        assert len(lines) == 2 + rows
        assert re.split(r" {2,}", lines[0].strip()) == [column.heading for column in columns]


def test_numbers_stand_at_the_right_and_text_at_the_left() -> None:
    lines = bare(table((Column("name", 0), Column("n", 0, right=True)), [("a", "1"), ("bcd", "100")], width_columns=80))
    assert lines == ["name    n", "----  ---", "a       1", "bcd   100"]


def test_a_character_that_is_two_columns_wide_is_counted_so() -> None:
    lines = bare(table((Column("n", 0), Column("m", 0)), [("\u6728", "x"), ("e\u0301", "y")], width_columns=80))
    assert lines[2:] == ["\u6728  x", "e\u0301   y"]


def test_a_cell_cannot_break_its_line_or_colour_the_terminal() -> None:
    lines = table((Column("n", 0),), [("a\nb\tc\x1b[2J",)], width_columns=80)
    assert lines[2] == "a\ufffdb\ufffdc\ufffd[2J"


def test_a_column_is_folded_only_as_far_as_the_others_need() -> None:
    columns = (Column("a", 0, folds=True), Column("b", 0, folds=True))
    lines = bare(table(columns, [("one two three " * 5, "four five six " * 5)], width_columns=80))
    assert lines[1] == "-" * 24 + "  " + "-" * 54


def test_a_table_without_rows_has_its_headings() -> None:
    assert bare(table((Column("n", 0), Column("m", 1, folds=True)), [], width_columns=80))[0] == "n  m"


@given(
    ranked=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), min_size=1, max_size=12),
    columns=st.integers(1, 200),
)
def test_the_columns_that_are_shown_fit_and_none_that_fits_as_well_outranks_them(
    ranked: list[tuple[int, int]], columns: int
) -> None:
    ranks, least = zip(*ranked, strict=True)
    places = fitting(ranks, least, columns)
    assert places == sorted(places)
    assert {place for place, rank in enumerate(ranks) if rank == 0} <= set(places)

    def taken(chosen: list[int]) -> int:
        return sum(least[place] for place in chosen) + len(GAP) * (len(chosen) - 1)

    if any(ranks[place] for place in places):
        assert taken(places) <= columns
    for hidden in set(range(len(ranks))) - set(places):
        better = [place for place in places if (ranks[place], place) < (ranks[hidden], hidden)]
        assert taken([*better, hidden]) > columns


# --- events ---------------------------------------------------------------------------------------------------------

CHOSEN = Recorded(
    seq=1234,
    at=1_795_390_000_000_000_000,
    id=IDS[0],
    writer="w",
    writer_seq=1234,
    event=RouteChosen(
        request=IDS[1], attempt=1, policy="classic", policy_hash="0123456789ab", node="mac-studio", model=LONG_MODEL
    ),
)


def test_an_event_takes_one_line_where_nobody_looks_at_it() -> None:
    (line,) = bare(sentence(CHOSEN, None))
    assert re.match(r"  1234  2026-11-2\d \d\d:\d\d:\d\d  route.chosen  request/", line)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_an_event_is_folded_between_its_details(columns: int) -> None:
    lines = bare(sentence(CHOSEN, columns))
    assert max(map(len, lines)) <= columns
    assert any(f"request/{IDS[1]}" in line for line in lines)
    assert any(LONG_MODEL in line for line in lines)
    assert all(line.startswith("        ") for line in lines[1:])


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_tokyo() -> Generator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_a_time_is_the_one_on_the_clock_here() -> None:
    assert local_time(0) == "1970-01-01 09:00:00"
    assert local_time(1_500_000_000) == "1970-01-01 09:00:01"
    assert local_time(86_399.9) == "1970-01-02 08:59:59"


def test_one_thing_is_not_called_by_its_plural() -> None:
    assert [count(number, "node") for number in (0, 1, 2, 1234)] == ["0 nodes", "1 node", "2 nodes", "1,234 nodes"]


def test_what_nobody_knows_is_a_dash() -> None:
    assert (number(None), duration(None)) == ("-", "-")
    assert (duration(0.4), duration(999.4), duration(1000), duration(75_000)) == ("0 ms", "999 ms", "1.0 s", "75.0 s")


# --- a real terminal ------------------------------------------------------------------------------------------------


@contextmanager
def terminal(columns: int) -> Generator[tuple[int, int]]:
    """Yield both ends of a terminal of this width: ours, and the one for a program."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        yield ours, theirs
    finally:
        os.close(ours)


def read_all(ours: int) -> str:
    """Return what a program wrote to its end until it closed it."""
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


def test_a_command_asks_its_terminal_how_wide_it_is(tmp_path: Path) -> None:
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_") and name != "COLUMNS"}
    with terminal(70) as (ours, theirs):
        with subprocess.Popen(
            [sys.executable, "-m", "herd.cli.herd", "settings"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**foreign, "HOME": str(tmp_path)},
        ) as running:
            os.close(theirs)
            text = read_all(ours)
        assert running.returncode == 0
    lines = bare(text.splitlines())
    assert any(line.startswith("FLEET_PORT ") for line in lines)
    assert "The terminal is too narrow for: meaning. --json has all." in lines
