"""Every command explains itself, prints what programs can read, and fails in one line with a code for scripts."""

import asyncio
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import psutil
import pytest
from click.testing import CliRunner, Result

from events import jsonl
from events.clock import ManualClock
from events.recorded import Recorded
from events.sqlite import SQLiteStore, driver
from events.types import (
    Model,
    NodeInventoryChanged,
    NodeJoined,
    NodeReported,
    NodeStatusChanged,
    PolicyPromoted,
    RequestDispatched,
    RequestFinished,
    RouterStarted,
)
from herd import __version__
from herd.api.status import fleet_status
from herd.cli import COMMANDS, options
from herd.cli.children import Children, stop
from herd.cli.greeting import for_chat
from herd.cli.herd import main
from herd.cli.program import BUG, INTERRUPTED, PIPE_CLOSED, TRACEBACK_VARIABLE, Program
from herd.cli.status import parse
from herd.cli.up import node_settings
from herd.core import Core
from herd.errors import StartupError
from herd.node.engines import fetch
from herd.routing import POLICIES
from herd.settings import RouterSettings
from projections import runner
from projections.tables import TraceTable
from projections.view import View
from tests.engines.fixtures import unavailable
from tests.engines.get_ollama import EngineUnavailable, cache_dir
from tests.given import given, joined, online, received, residing, served, stocked

#: A name as only a malicious node would choose it.
EVIL = "[red]ash[/red]\x1b[2J\x07"


def commands(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command, groups included, with the words that run it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


ALL = [pytest.param(path, command, id=" ".join(("herd", *path))) for path, command in commands()]
LEAVES = [param for param in ALL if not isinstance(param.values[1], click.Group)]

#: Commands that print nothing which a program would want to read.
NOT_DATA = {("up",), ("serve",), ("events", "export")}


def environment(home: Path, **more: str | None) -> dict[str, str | None]:
    """Return an environment in which nothing of this machine's own settings is left."""
    foreign = {name: None for name in os.environ if name.startswith("FLEET_")}
    return {**foreign, "HOME": str(home), "FLEET_ENV_FILE": str(home / "env"), **more}


def herd(home: Path, *arguments: str, **more: str | None) -> Result:
    """Run the command line in this process."""
    return CliRunner(env=environment(home, **more)).invoke(main, arguments, prog_name="herd")


@contextmanager
def process(home: Path, *arguments: str, **more: str) -> Generator[subprocess.Popen[str]]:
    """Run the command line as a process of its own, which does not outlive the test."""
    variables = {**os.environ, **{name: value for name, value in environment(home, **more).items() if value}}
    for name in [name for name in variables if name.startswith("FLEET_") and name not in {*more, "FLEET_ENV_FILE"}]:
        del variables[name]
    with subprocess.Popen(
        [sys.executable, "-m", "herd.cli.herd", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
    ) as running:
        try:
            yield running
        finally:
            running.terminate()  # and not kill: what it started must end with it
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()


def failed_well(result: Result, code: int, *words: str) -> None:
    """Assert that a command failed with this code, in one line with these words, and without a traceback."""
    assert result.exit_code == code, result.output
    errors = result.stderr.strip().splitlines()
    assert errors[0].startswith("error: ")
    assert all(line.startswith(("error: ", "hint: ", "warning: ")) for line in errors)
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


# --- a log to look at -----------------------------------------------------------------------------------------------


class Writing:
    """A router's log, written as the router does it, with decisions that its policy really made."""

    def __init__(self, home: Path) -> None:
        self.clock = ManualClock()
        database = home / "latency.db"
        self.store = SQLiteStore.open(database, clock=self.clock, writer="test", projections=[TraceTable(database)])
        self.core = Core(self.store, self.clock, POLICIES["classic"]({}), View(), seed=7)

    def begin(self) -> None:
        policy = self.core.policy
        self.core.record(RouterStarted(version=__version__))
        self.core.record(
            PolicyPromoted(policy=policy.name, policy_hash=policy.hash, parameters=policy.parameters, by="test")
        )
        for name in ("ash", "oak"):
            self.core.record(NodeJoined(node=name, url=f"http://{name}"))
            self.core.record(NodeStatusChanged(node=name, status="online"))
            self.core.record(NodeInventoryChanged(node=name, models=(Model(name="llama3:latest", size_bytes=10**9),)))
            self.core.record(NodeReported(node=name, keyframe=True, engine_up=True, cpu_pct=3.0))

    def request(self, name: str, outcome: str = "completed", error: str = "") -> None:
        self.clock.advance(s=1)
        asked = received(name, "llama3:latest")
        cause = self.core.record(asked).id
        chosen = self.core.choose(asked, cause=cause)[1]
        assert chosen.node is not None
        self.core.record(RequestDispatched(request=name, attempt=1, node=chosen.node, model=asked.model))
        self.clock.advance(s=0.5)
        self.core.record(
            RequestFinished(
                request=name,
                outcome=outcome,  # pyright: ignore[reportArgumentType] - words of the test
                node=chosen.node,
                model=asked.model,
                attempts=1,
                status=200,
                error=error,
            )
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with the log of a router that has stopped; to be read only."""
    home = tmp_path_factory.mktemp("written")

    async def write() -> None:
        writing = Writing(home)
        writing.begin()
        writing.request("r1")
        writing.request("r2", "failed", f"{EVIL} broke off")
        writing.request("r3")
        runner.save(writing.store, writing.core.view)
        await writing.store.close()

    asyncio.run(write())
    return home


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """Return a home with a copy of that log, to be spoilt."""
    (tmp_path / "latency.db").write_bytes((written / "latency.db").read_bytes())
    return tmp_path


def database_of(home: Path) -> str:
    return f"--data-dir={home}"


def positions(result: Result) -> list[int]:
    """Return the positions of the events that a command printed as JSON lines."""
    assert result.exit_code == 0, result.output
    return [json.loads(line)["seq"] for line in result.stdout.splitlines()]


# --- a router to ask ------------------------------------------------------------------------------------------------


@contextmanager
def answering(**bodies: bytes) -> Generator[str]:
    """Answer GETs for paths, their slashes written as underscores, and yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path.partition("?")[0].strip("/").replace("/", "_"))
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name is the library's
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def status_body(*steps: Any) -> bytes:
    """Return what a router with this history answers to GET /fleet/status."""
    history = given(*steps)
    return msgspec.json.encode(fleet_status(history.view, now=history.log[-1].at if history.log else 0))


BUSY = (
    joined("ash"),
    online("ash"),
    stocked("ash", "llama3:latest", "nomic-embed-text:latest"),
    residing("ash", "llama3:latest"),
    served("r1", "ash", "llama3:latest"),
)

# --- every command --------------------------------------------------------------------------------------------------


def test_every_command_is_in_the_help_in_the_order_of_the_registry(tmp_path: Path) -> None:
    result = herd(tmp_path, "--help")
    listed = re.findall(r"^  (\w+) +\w", result.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == [command.name for command in COMMANDS]


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_explains_itself(tmp_path: Path, path: tuple[str, ...], command: click.Command) -> None:
    result = herd(tmp_path, *path, "--help")
    assert result.exit_code == 0
    assert command.help
    assert command.get_short_help_str(1000).endswith(".")
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


@pytest.mark.parametrize(("path", "command"), [param for param in ALL if param not in LEAVES])
def test_every_list_of_commands_has_whole_sentences_in_a_narrow_terminal(
    tmp_path: Path, path: tuple[str, ...], command: click.Command
) -> None:
    del command
    listed = herd(tmp_path, *path, "--help").stdout.partition("Commands:")[2].partition("Example")[0]
    assert listed
    assert "..." not in listed


@pytest.mark.parametrize(("path", "command"), LEAVES)
def test_every_command_shows_an_example_of_itself_and_its_exit_codes(
    tmp_path: Path, path: tuple[str, ...], command: click.Command
) -> None:
    del command
    help_text = herd(tmp_path, *path, "--help").stdout
    assert re.search(r"^  Examples?:\n    .*" + re.escape(" ".join(("herd", *path))), help_text, re.MULTILINE)
    assert re.search(r"^  Exit codes:\n    \d  \w", help_text, re.MULTILINE)


@pytest.mark.parametrize(("path", "command"), [param for param in ALL if param not in LEAVES])
def test_every_group_shows_examples_of_its_commands(
    tmp_path: Path, path: tuple[str, ...], command: click.Command
) -> None:
    del command
    help_text = herd(tmp_path, *path, "--help").stdout
    assert re.search(r"^  Examples:\n    " + re.escape(" ".join(("herd", *path))), help_text, re.MULTILINE)


@pytest.mark.parametrize(("path", "command"), LEAVES)
def test_every_example_is_accepted_by_the_command_line(
    tmp_path: Path, path: tuple[str, ...], command: click.Command
) -> None:
    del path
    lines = re.findall(r"^  (?:[A-Z_]+=\S+ )?(herd .+)$", command.epilog or "", re.MULTILINE)
    assert lines
    for line in re.split(r" && | \| ", " && ".join(lines)):
        words = line.split(">")[0].split()
        if words[0] == "herd":
            assert herd(tmp_path, *words[1:], "--help").exit_code == 0


@pytest.mark.parametrize(("path", "command"), LEAVES)
def test_every_command_that_prints_data_prints_json(path: tuple[str, ...], command: click.Command) -> None:
    has_json = any("--json" in parameter.opts for parameter in command.params)
    assert has_json is (path not in NOT_DATA)


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_refuses_a_flag_that_it_does_not_know(
    tmp_path: Path, path: tuple[str, ...], command: click.Command
) -> None:
    del command
    failed_well(herd(tmp_path, *path, "--no-such-flag"), 2, "--no-such-flag", " ".join(("herd", *path, "--help")))


@pytest.mark.parametrize(
    "path", [("events", "list"), ("events", "tail"), ("events", "export"), ("events", "verify"), ("replay", "verify")]
)
class TestEveryCommandThatReadsTheLog:
    def test_says_what_to_do_where_there_is_none(self, tmp_path: Path, path: tuple[str, ...]) -> None:
        failed_well(herd(tmp_path, *path), 3, "there is no log at", "--data-dir")
        assert list(tmp_path.iterdir()) == []

    def test_leaves_the_database_of_another_program_as_it_is(self, tmp_path: Path, path: tuple[str, ...]) -> None:
        with driver.connect(tmp_path / "latency.db") as connection:
            connection.execute("CREATE TABLE request_traces (id INTEGER)")
        connection.close()
        before = (tmp_path / "latency.db").read_bytes()
        failed_well(herd(tmp_path, *path, database_of(tmp_path)), 3, "another program")
        assert (tmp_path / "latency.db").read_bytes() == before

    def test_refuses_a_file_that_is_no_database(self, tmp_path: Path, path: tuple[str, ...]) -> None:
        (tmp_path / "latency.db").write_text("not a database at all, " * 100)
        failed_well(herd(tmp_path, *path, database_of(tmp_path)), 3)

    def test_reports_a_setting_without_sense(self, tmp_path: Path, path: tuple[str, ...]) -> None:
        failed_well(herd(tmp_path, *path, FLEET_PORT="many"), 2, "FLEET_PORT")


# --- herd -----------------------------------------------------------------------------------------------------------


def test_the_version_is_told(tmp_path: Path) -> None:
    assert herd(tmp_path, "--version").stdout == f"herd {__version__}\n"


def test_a_flag_that_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    failed_well(herd(tmp_path, "--port", "1", "status"), 2, "--port before status")


def test_help_does_not_wait_for_what_it_does_not_need() -> None:
    heavy = "{'litestar', 'uvicorn', 'httpx', 'sqlalchemy', 'alembic', 'polars', 'plotly', 'zeroconf', 'rich.console'}"
    code = f"import sys; from herd.cli.herd import main; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def broken(error: BaseException) -> Program:
    program = Program("herd")

    @program.command()
    def fall() -> None:
        raise error

    return program


def test_a_bug_is_told_in_one_line_with_a_way_to_learn_more() -> None:
    result = CliRunner().invoke(broken(ZeroDivisionError("by nothing")), ["fall"])
    failed_well(result, BUG, "ZeroDivisionError: by nothing", TRACEBACK_VARIABLE)


def test_a_bug_in_a_process_of_its_own_prints_no_more_than_that() -> None:
    code = (
        "from herd.cli.program import Program\n"
        "program = Program('herd')\n"
        "program.command('fall')(lambda: 1 // 0)\n"
        "program.main(['fall'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != TRACEBACK_VARIABLE}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == BUG
    assert [line.partition(":")[0] for line in run.stderr.splitlines()] == ["error", "hint"]
    assert run.stdout == ""


def test_a_bug_shows_where_it_happened_to_who_asks() -> None:
    result = CliRunner(env={TRACEBACK_VARIABLE: "1"}).invoke(broken(ZeroDivisionError("by nothing")), ["fall"])
    assert "Traceback" in result.stderr
    assert "in fall" in result.stderr


def test_an_error_of_many_lines_is_told_in_one() -> None:
    failed_well(CliRunner().invoke(broken(StartupError("one\ntwo\x1b[2J", hint="three\nfour")), ["fall"]), 1, "one two")


def test_an_interrupted_command_exits_as_shells_expect() -> None:
    assert CliRunner().invoke(broken(KeyboardInterrupt()), ["fall"]).exit_code == INTERRUPTED


@pytest.mark.parametrize("command", [(), ("serve",), ("up",), ("settings",)])
def test_a_policy_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path, command: tuple[str, ...]) -> None:
    failed_well(herd(tmp_path, *command, "--policy=bogus"), 2, "no routing policy 'bogus'", ", ".join(POLICIES))
    assert list(tmp_path.iterdir()) == []


# --- herd settings --------------------------------------------------------------------------------------------------


def test_settings_show_values_and_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FLEET_POLICY=classic\nFLEET_NODE_NODE_ID=ash\n")
    result = herd(tmp_path, "settings", "--json", FLEET_PORT="4711")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    router = {setting["name"]: setting for setting in found["router"]}
    node = {setting["name"]: setting for setting in found["node"]}
    assert (router["port"]["value"], router["port"]["origin"]) == (4711, "environment")
    assert (router["policy"]["value"], router["policy"]["origin"]) == ("classic", "file")
    assert (router["host"]["value"], router["host"]["origin"]) == ("0.0.0.0", "default")
    assert (node["node_id"]["value"], node["node_id"]["origin"]) == ("ash", "file")


def test_settings_show_what_a_flag_would_do(tmp_path: Path) -> None:
    result = herd(tmp_path, "settings", "--json", "--port=4712", "--no-mdns", FLEET_PORT="4711")
    router = {setting["name"]: setting for setting in json.loads(result.stdout)["router"]}
    assert (router["port"]["value"], router["port"]["origin"]) == (4712, "flag")
    assert (router["mdns"]["value"], router["mdns"]["origin"]) == (False, "flag")


def test_settings_are_a_table_for_people(tmp_path: Path) -> None:
    result = herd(tmp_path, "settings", FLEET_PORT="4711")
    assert re.search(r"FLEET_PORT +4711 +environment +Port to listen on", result.stdout)


def test_settings_point_out_variables_that_nothing_reads(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FLEET_AUTO_PULL=true\n")
    result = herd(tmp_path, "settings", FLEET_PROT="1")
    assert result.exit_code == 1
    assert "FLEET_AUTO_PULL is not a setting" in result.stderr
    assert "Did you mean FLEET_PORT?" in result.stderr
    assert json.loads(herd(tmp_path, "settings", "--json", FLEET_PROT="1").stdout)["unknown"] == {
        "FLEET_AUTO_PULL": "",
        "FLEET_PROT": "FLEET_PORT",
    }


# --- herd status ----------------------------------------------------------------------------------------------------


def test_status_prints_what_the_router_says_as_json(tmp_path: Path) -> None:
    body = status_body(*BUSY)
    with answering(fleet_status=body) as url:
        result = herd(tmp_path, "status", "--url", url, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(body)


def test_status_is_a_table_for_people(tmp_path: Path) -> None:
    with answering(fleet_status=status_body(*BUSY)) as url:
        result = herd(tmp_path, "status", "--url", url.removeprefix("http://"))
    assert result.exit_code == 0
    assert "1 of 1 node online, 1 model in memory, 0 requests running" in result.stdout
    assert re.search(r"ash +online +Ollama .* llama3:latest +2 ", result.stdout)
    assert re.search(r"ash:llama3:latest +0 +0 +1 +0", result.stdout)


def test_status_of_a_fleet_without_nodes_is_bad_news_with_advice(tmp_path: Path) -> None:
    with answering(fleet_status=status_body()) as url:
        result = herd(tmp_path, "status", "--url", url)
    assert result.exit_code == 1
    assert "herd-node" in result.stdout


def test_the_name_of_a_node_is_text_whatever_is_in_it(tmp_path: Path) -> None:
    with answering(fleet_status=status_body(joined(EVIL), online(EVIL))) as url:
        result = herd(tmp_path, "status", "--url", url)
    assert "[red]ash[/red]" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout


def test_status_asks_where_the_settings_say_that_the_router_is(tmp_path: Path) -> None:
    with answering(fleet_status=status_body(*BUSY)) as url:
        assert herd(tmp_path, "status", FLEET_PORT=url.rpartition(":")[2]).exit_code == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[", "ftp://127.0.0.1"])
@pytest.mark.parametrize("command", ["status", "traces"])
def test_a_router_that_is_not_there_is_told_with_advice(tmp_path: Path, command: str, url: str) -> None:
    failed_well(herd(tmp_path, command, "--url", url), 3, "cannot reach the router", "herd")


def test_a_host_alone_is_asked_at_the_port_that_routers_have() -> None:
    assert options.router_url("ash") == "http://ash:11435"
    assert options.router_url("ash:1/") == "http://ash:1"
    assert options.router_url("http://ash/") == "http://ash"


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"traces": 1}'])
def test_another_program_at_the_address_is_recognised(tmp_path: Path, body: bytes) -> None:
    with answering(fleet_status=body, dashboard_api_traces=body) as url:
        failed_well(herd(tmp_path, "status", "--url", url), 3, "Is this a Herd router")
        failed_well(herd(tmp_path, "traces", "--url", url), 3, "Is this a Herd router")
    with answering() as url:
        failed_well(herd(tmp_path, "status", "--url", url), 3, "answered 404")


# --- herd traces ----------------------------------------------------------------------------------------------------


def test_traces_are_read_from_the_file_when_asked(written: Path) -> None:
    result = herd(written, "traces", database_of(written), "--json")
    assert result.exit_code == 0
    traces = json.loads(result.stdout)["traces"]
    assert [trace["request_id"] for trace in traces] == ["r3", "r2", "r1"]
    assert traces[0]["scores_breakdown"]["total"] == traces[0]["score"]


def test_traces_can_be_filtered(written: Path) -> None:
    def found(*filters: str) -> list[str]:
        result = herd(written, "traces", database_of(written), "--json", *filters)
        return [trace["request_id"] for trace in json.loads(result.stdout)["traces"]]

    assert found("--limit", "1") == ["r3"]
    assert found("--status", "failed") == ["r2"]
    assert found("--model", "other") == []
    assert set(found("--node", "ash") + found("--node", "oak")) == {"r1", "r2", "r3"}


def test_traces_are_a_table_for_people_and_errors_are_text(written: Path) -> None:
    result = herd(written, "traces", database_of(written))
    assert re.search(r"r3 +completed +llama3:latest", result.stdout)
    assert re.search(r" r2 .*\n    \[red\]ash\[/red\]", result.stdout)
    assert "\x1b" not in result.stdout


def test_traces_come_from_the_router_where_one_runs(written: Path) -> None:
    body = msgspec.json.encode({"traces": given(*BUSY).traces})
    with answering(dashboard_api_traces=body) as url:
        port = url.rpartition(":")[2]
        result = herd(written, "traces", "--json", FLEET_PORT=port, FLEET_DATA_DIR=str(written))
    assert [trace["request_id"] for trace in json.loads(result.stdout)["traces"]] == ["r1"]


def test_traces_come_from_the_file_where_no_router_runs(written: Path) -> None:
    result = herd(written, "traces", "--json", FLEET_PORT="1", FLEET_DATA_DIR=str(written))
    assert len(json.loads(result.stdout)["traces"]) == 3


def test_traces_of_a_router_that_was_named_do_not_come_from_elsewhere(written: Path) -> None:
    result = herd(written, "traces", "--url", "http://127.0.0.1:1", FLEET_DATA_DIR=str(written))
    failed_well(result, 3, "cannot reach the router")


def test_traces_come_from_one_place(written: Path) -> None:
    failed_well(herd(written, "traces", "--url=x", database_of(written)), 2, "--url and --data-dir")


@pytest.mark.parametrize(("flag", "allowed"), [("--limit=0", "1<=x<=1000"), ("--status=bogus", "client_disconnected")])
def test_traces_refuse_a_filter_without_sense_and_say_what_is_allowed(written: Path, flag: str, allowed: str) -> None:
    failed_well(herd(written, "traces", flag), 2, flag.partition("=")[0], allowed)


def test_traces_of_no_log_are_explained(tmp_path: Path) -> None:
    failed_well(herd(tmp_path, "traces", database_of(tmp_path)), 3, "there is no log")
    (tmp_path / "latency.db").write_text("no database")
    failed_well(herd(tmp_path, "traces", database_of(tmp_path)), 3, "cannot read the traces")


# --- herd events ----------------------------------------------------------------------------------------------------


def test_events_list_the_newest_in_the_order_of_the_log(written: Path) -> None:
    everything = positions(herd(written, "events", "list", database_of(written), "--limit", "1000", "--json"))
    assert everything == list(range(1, len(everything) + 1))
    newest = positions(herd(written, "events", "list", database_of(written), "--limit", "3", "--json"))
    assert newest == everything[-3:]


def test_events_list_from_a_position_on(written: Path) -> None:
    def listed(*flags: str) -> list[int]:
        return positions(herd(written, "events", "list", database_of(written), "--json", *flags))

    assert listed("--after", "2", "--limit", "3") == [3, 4, 5]
    assert listed("--after", "2", "--until", "4") == [3, 4]
    assert listed("--until", "4", "--limit", "2") == [3, 4]
    assert listed("--after", "100000") == []


def test_events_can_be_chosen_by_type_subject_and_stream(written: Path) -> None:
    def tags(*flags: str) -> set[str]:
        result = herd(written, "events", "list", database_of(written), "--json", *flags)
        return {json.loads(line)["event"]["type"] for line in result.stdout.splitlines()}

    assert tags("--type", "request.finished") == {"request.finished"}
    assert tags("--type", "request") == {"request.received", "request.dispatched", "request.finished"}
    assert tags("--type", "route.chosen", "--type", "router") == {"route.chosen", "router.started"}
    assert tags("--stream", "node/oak", "--type", "node.joined") == {"node.joined"}
    assert tags("--stream", "node/elm") == set()


def test_an_event_type_that_does_not_exist_is_answered_with_those_that_do(written: Path) -> None:
    failed_well(herd(written, "events", "list", "--type", "request.fin"), 2, "request.fin", "request.finished")


def test_events_are_lines_for_people_and_their_text_is_text(written: Path) -> None:
    result = herd(written, "events", "list", database_of(written), "--type", "request.finished")
    assert re.search(r"2026-01-0\d \d\d:\d\d:\d\d  request.finished  request/r2  outcome=failed", result.stdout)
    assert "\x1b" not in result.stdout


def test_a_list_without_events_says_so_to_people_and_is_empty_for_programs(written: Path) -> None:
    result = herd(written, "events", "list", database_of(written), "--stream", "node/elm")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No event matches.\n")
    result = herd(written, "events", "list", database_of(written), "--stream", "node/elm", "--json")
    assert (result.exit_code, result.output) == (0, "")


def test_an_export_can_be_loaded_again(written: Path) -> None:
    lines = herd(written, "events", "export", database_of(written)).stdout.splitlines()
    loaded = [jsonl.load(line) for line in lines]
    assert [recorded.seq for recorded in loaded] == list(range(1, len(lines) + 1))
    assert all(isinstance(recorded, Recorded) for recorded in loaded)


def test_an_export_to_a_file_appears_when_it_is_complete(written: Path, tmp_path: Path) -> None:
    output = tmp_path / "history.jsonl"
    result = herd(written, "events", "export", database_of(written), "-o", str(output), "--type", "router")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == "1 event exported\n"
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    result = herd(written, "events", "export", database_of(written), "-o", str(tmp_path / "no" / "x"))
    failed_well(result, 3, f"cannot write {tmp_path / 'no' / 'x.part'}: No such file or directory")


def test_an_export_into_a_device_or_a_link_leaves_it_what_it_is(written: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ("events", "export", database_of(written), "--type", "router", "-o")
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_bytes)
        assert herd(written, *command, str(pipe)).exit_code == 0
        assert len(read.result(20).splitlines()) == 1
    assert pipe.is_fifo()
    link, linked = tmp_path / "link", tmp_path / "linked"
    link.symlink_to(linked)
    linked.write_text("old")
    assert herd(written, *command, str(link)).exit_code == 0
    assert link.is_symlink()
    assert len(linked.read_bytes().splitlines()) == 1


def test_a_stream_that_cannot_be_is_answered_with_those_that_can(written: Path) -> None:
    result = herd(written, "events", "list", database_of(written), "--stream", "oak")
    failed_well(result, 2, "'oak'", "node/<name>", "request/<id>")


def test_an_export_stops_quietly_when_nobody_reads_on(written: Path) -> None:
    with process(written, "events", "export", database_of(written)) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        errors = running.stderr.read()
        assert running.wait(30) == PIPE_CLOSED
    assert errors == ""


def test_verify_finds_that_a_rebuild_equals_what_is_kept(written: Path) -> None:
    result = herd(written, "events", "verify", database_of(written), "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["ok"] is True
    assert found["rows"] == 3
    assert found["snapshot_seq"] == found["seq"]
    assert "A rebuild equals" in herd(written, "events", "verify", database_of(written)).stdout


def test_verify_finds_a_row_that_the_log_does_not_make(copied: Path) -> None:
    with driver.connect(copied / "latency.db") as connection:
        connection.execute("UPDATE request_traces SET status = 'completed' WHERE request_id = 'r2'")
    connection.close()
    result = herd(copied, "events", "verify", database_of(copied))
    assert result.exit_code == 1
    assert "r2" in result.stdout
    assert json.loads(herd(copied, "events", "verify", database_of(copied), "--json").stdout)["ok"] is False


def test_tail_shows_what_was_and_what_comes_until_ctrl_c(tmp_path: Path) -> None:
    async def scene() -> None:
        writing = Writing(tmp_path)
        writing.begin()
        writing.request("r1")
        await writing.store.flushed(writing.store.state.head)
        with process(
            tmp_path, "events", "tail", database_of(tmp_path), "-n", "1", "--type", "request.finished", "--json"
        ) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            line = await asyncio.to_thread(running.stdout.readline)
            assert json.loads(line)["event"]["request"] == "r1"
            writing.request("r2")
            writing.request("r3")
            await writing.store.flushed(writing.store.state.head)
            lines = [await asyncio.to_thread(running.stdout.readline) for _ in range(2)]
            assert [json.loads(line)["event"]["request"] for line in lines] == ["r2", "r3"]
            running.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(running.wait, 30) == 0
            assert running.stderr.read() == ""
        await writing.store.close()

    asyncio.run(scene())


# --- herd replay ----------------------------------------------------------------------------------------------------


def exported(written: Path, path: Path, alter: Callable[[str], str] = lambda text: text) -> Path:
    """Export the log, with a change, and return the file."""
    path.write_text(alter(herd(written, "events", "export", database_of(written)).stdout))
    return path


def test_replay_verifies_every_decision_from_the_database_and_from_an_export(written: Path, tmp_path: Path) -> None:
    log = exported(written, tmp_path / "log.jsonl")
    for source in (database_of(written), f"--log={log}"):
        result = herd(written, "replay", "verify", source, "--json")
        assert result.exit_code == 0
        report = json.loads(result.stdout)
        assert (report["ok"], report["decisions"], report["identical"]) == (True, 3, 3)
        assert "bit for bit" in herd(written, "replay", "verify", source).stdout


def test_replay_finds_a_decision_that_was_tampered_with(written: Path, tmp_path: Path) -> None:
    log = exported(written, tmp_path / "log.jsonl", lambda text: re.sub(r'"score":[\d.]+', '"score":1.0', text))
    result = herd(written, "replay", "verify", f"--log={log}")
    assert result.exit_code == 1
    assert "score was 1.0" in result.stdout
    report = json.loads(herd(written, "replay", "verify", f"--log={log}", "--json").stdout)
    assert (report["ok"], report["differing"]) == (False, 3)


def test_replay_refuses_a_log_with_a_hole(written: Path, tmp_path: Path) -> None:
    log = exported(written, tmp_path / "log.jsonl", lambda text: "".join(text.splitlines(keepends=True)[1:]))
    failed_well(herd(written, "replay", "verify", f"--log={log}"), 1, "begins at position 2")


def test_replay_of_an_empty_log_proves_nothing_and_says_so(written: Path, tmp_path: Path) -> None:
    log = exported(written, tmp_path / "log.jsonl", lambda _: "")
    assert "no decision" in herd(written, "replay", "verify", f"--log={log}").stdout


@pytest.mark.parametrize("line", ["", "nonsense", "{}", '{"seq":1}', "\x00"])
def test_a_line_that_is_no_event_is_named_by_its_number(written: Path, tmp_path: Path, line: str) -> None:
    def spoil(text: str) -> str:
        lines = text.splitlines()
        return "\n".join([*lines[:2], line, *lines[2:]])

    log = exported(written, tmp_path / "log.jsonl", spoil)
    failed_well(herd(written, "replay", "verify", f"--log={log}"), 3, "line 3")


def test_replay_reads_one_log_at_a_time(written: Path, tmp_path: Path) -> None:
    failed_well(herd(written, "replay", "verify", "--log=x", database_of(tmp_path)), 2, "--log and --data-dir")
    failed_well(herd(written, "replay", "verify", f"--log={tmp_path / 'none'}"), 3, "cannot open")


# --- herd up --------------------------------------------------------------------------------------------------------


def test_the_first_question_goes_to_a_model_that_can_chat_and_answers_soon() -> None:
    body = {
        "fleet": {"nodes_total": 2, "nodes_online": 1, "models_loaded": 1, "requests_active": 0},
        "queues": {},
        "nodes": [
            {
                "node_id": "ash",
                "status": "online",
                "ollama": {
                    "models_available": ["big", "nomic-embed-text", "small", "hot"],
                    "models_available_sizes": {"big": 40.0, "small": 1.0, "hot": 8.0, "nomic-embed-text": 0.1},
                    "models_loaded": [{"name": "hot"}],
                },
            },
            {"node_id": "oak", "status": "offline", "ollama": {"models_available": ["tiny"]}},
        ],
    }
    assert for_chat(parse(msgspec.json.encode(body), ""), since_s=0.0) == ["hot", "small", "big"]


def test_the_first_question_goes_to_no_node_that_a_restarted_router_only_remembers() -> None:
    nodes: list[dict[str, Any]] = [
        {"node_id": "ash", "status": "online", "last_heartbeat": 99.9, "ollama": {"models_available": ["gone"]}},
        {"node_id": "oak", "status": "online", "last_heartbeat": 100.1, "ollama": {"models_available": ["here"]}},
    ]
    fleet = {"nodes_total": 2, "nodes_online": 2, "models_loaded": 0, "requests_active": 0}
    found = parse(msgspec.json.encode({"fleet": fleet, "queues": {}, "nodes": nodes}), "")
    assert for_chat(found, since_s=100.0) == ["here"]


def test_the_status_tells_when_a_node_was_last_heard_of() -> None:
    body = json.loads(status_body(*BUSY, NodeReported(node="ash")))
    heard = parse(msgspec.json.encode(body), "").nodes[0].last_heartbeat
    assert heard is not None
    assert heard == body["nodes"][0]["last_heartbeat"]


def test_when_a_part_ends_the_user_hears_so_before_the_rest_has_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = Children("/logs")
    variables = {**os.environ, **{name: value or "" for name, value in environment(tmp_path).items()}}
    try:
        kept.start("the router", "herd.cli.herd", ["--version"], variables, grace_s=10.0)  # ends by itself
        serve = ["serve", "--host=127.0.0.1", "--port=0", "--no-mdns", database_of(tmp_path)]
        kept.start("the node agent", "herd.cli.herd", serve, variables, grace_s=10.0)  # goes on until it is stopped
        with pytest.raises(StartupError, match="the router ended with code 0"):
            watch(kept)
        assert "the router has ended. Stopping the rest" in capfd.readouterr().err
    finally:
        kept.stop()


def watch(kept: Children) -> None:
    """Check until a part has ended, which raises."""
    for _ in range(2000):
        kept.check()
        time.sleep(0.01)


def test_up_does_not_start_beside_a_router_that_runs(tmp_path: Path) -> None:
    with answering(fleet_status=status_body()) as url:
        result = herd(tmp_path, "up", "--port", url.rpartition(":")[2])
    failed_well(result, 1, "runs at", "already", "--port")
    failed_well(herd(tmp_path, "up", "--port", "0"), 2, "port")


def test_what_was_started_is_stopped_even_if_it_will_not() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        stop([(stubborn, 0.05)])
        assert stubborn.returncode == -signal.SIGKILL


def test_what_a_started_program_started_is_stopped_with_it() -> None:
    code = "import subprocess, sys; c = subprocess.Popen(['sleep', '600']); print(c.pid, flush=True); c.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        stop([(parent, 10.0)])
        # The pipe closes when its last holder, the grandchild, is gone.
        assert parent.stdout.read() == b""


def test_the_agent_of_up_shares_the_directory_of_its_router() -> None:
    router = options.router_settings(data_dir="/srv/herd")
    assert node_settings(router, None, "http://r").values.data_dir == "/srv/herd"
    assert node_settings(options.router_settings(), None, "http://r").values.data_dir == RouterSettings().data_dir


def free_port() -> int:
    """Return a port that nobody listens on. `herd up` takes no 0: clients must know the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def fake_ollama(*arguments: str) -> Generator[str]:
    """Run a fake Ollama as a process of its own and yield its address."""
    command = [sys.executable, "-m", "tests.fakes.ollama", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().strip()
        finally:
            running.kill()


def flags_of_up(home: Path, port: int) -> tuple[str, ...]:
    return ("up", "--host=127.0.0.1", f"--port={port}", database_of(home), "--no-mdns")


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_up_brings_its_own_engine_and_the_decision_can_be_proved(tmp_path: Path) -> None:
    fetched = cache_dir() / "built-in-engine"
    try:
        asyncio.run(fetch.library(fetched))
        asyncio.run(fetch.weights(fetched))
    except StartupError as error:
        unavailable(EngineUnavailable(error.message))
    for place in fetched.iterdir():
        (tmp_path / place.name).symlink_to(place)
    with process(tmp_path, *flags_of_up(tmp_path, free_port()), "--engine=embedded", "--once") as running:
        shown, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    assert re.search(r"^smollm2:135m: \w+", shown, re.MULTILINE)
    assert re.search(r"engine +llama.cpp .* brought by Herd itself", shown)
    report = json.loads(herd(tmp_path, "replay", "verify", database_of(tmp_path), "--json").stdout)
    assert (report["decisions"], report["identical"]) == (1, 1)
    assert json.loads(herd(tmp_path, "events", "verify", database_of(tmp_path), "--json").stdout)["ok"] is True


def test_up_shows_a_first_answer_and_why_it_came_from_there_and_ctrl_c_stops_all_that_it_started(
    tmp_path: Path,
) -> None:
    port = free_port()
    with (
        fake_ollama("--models", "nomic-embed-text@embedding,llama3:8b") as ollama,
        process(tmp_path, *flags_of_up(tmp_path, port), "--prompt=Well?", FLEET_NODE_OLLAMA_HOST=ollama) as running,
    ):
        assert running.stdout is not None
        lines: list[str] = []
        for line in running.stdout:
            lines.append(line)
            if "Ctrl-C stops" in line:
                break
        started = psutil.Process(running.pid).children(recursive=True)
        assert len(started) == 2
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=50)
    assert running.returncode == 0, errors
    shown = "".join(lines)
    assert "You: Well?" in shown
    assert re.search(r"^llama3:8b: \S+", shown, re.MULTILINE)
    assert re.search(r"node +\S+ with [\d.]+ points: .*thermal [+-]\d", shown)
    assert re.search(r"engine +Ollama \S+ at http", shown)
    assert re.search(r"^Stopping.* Ctrl-C again does not wait.*\nStopped\.$", errors, re.MULTILINE)
    assert "Traceback" not in errors
    assert not any(child.is_running() for child in started)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    # In good order: the router said goodbye to its log, after the agent had said goodbye to the router.
    last = herd(tmp_path, "events", "list", database_of(tmp_path), "--json", "--limit=1").stdout
    assert json.loads(last)["event"]["type"] == "router.stopped"
    told = herd(tmp_path, "events", "list", database_of(tmp_path), "--json", "--type=node.status_changed").stdout
    assert "its agent stopped" in told


def test_up_says_that_the_port_is_taken_by_another_program(tmp_path: Path) -> None:
    with answering() as url, process(tmp_path, *flags_of_up(tmp_path, int(url.rpartition(":")[2]))) as running:
        _, errors = running.communicate(timeout=50)
    assert running.returncode == 1
    assert "cannot listen on 127.0.0.1" in errors
    assert "hint:" in errors
    assert "Traceback" not in errors


# --- herd serve -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("serve",)])
def test_a_router_that_cannot_start_says_so_in_one_line_with_and_without_the_word(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with answering() as url:
        port = url.rpartition(":")[2]
        result = herd(tmp_path, *command, "--host=127.0.0.1", f"--port={port}", database_of(tmp_path))
    failed_well(result, 1, f"error: cannot listen on 127.0.0.1:{port}", "hint: ")
    assert len(result.stderr.strip().splitlines()) == 2
