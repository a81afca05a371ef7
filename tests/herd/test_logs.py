"""The log file never loses what it could write, and never stops the program when it cannot."""

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import Any, cast

import pytest

from herd import logs
from herd.errors import SettingsError

log = logging.getLogger("herd.test")


@pytest.fixture(autouse=True)
def clean_logging() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction] - pytest uses it
    """Leave logging as it was."""
    root = logging.getLogger()
    before = root.level
    chatty = {name: logging.getLogger(name).level for name in logs.CHATTY}
    yield
    logs.shutdown()
    root.setLevel(before)
    for name, level in chatty.items():
        logging.getLogger(name).setLevel(level)


def lines(home: Path, name: str = "herd") -> list[dict[str, Any]]:
    """Stop logging and return what reached the file."""
    logs.shutdown()
    return [json.loads(line) for line in (home / "logs" / f"{name}.jsonl").read_text().splitlines()]


def test_a_line_is_json_with_what_it_is_about(tmp_path: Path) -> None:
    logs.configure(tmp_path, file_level="DEBUG", console_level="ERROR")
    log.info("sent to %s", "ash", extra={"request_id": "r1", "node_id": "ash", "model": "m", "queue_key": "ash:m"})
    (line,) = lines(tmp_path)
    stamp = datetime.fromisoformat(line.pop("ts"))
    assert stamp.utcoffset() == UTC.utcoffset(None)
    assert line == {
        "level": "INFO",
        "logger": "herd.test",
        "msg": "sent to ash",
        "request_id": "r1",
        "node_id": "ash",
        "model": "m",
        "queue_key": "ash:m",
    }


def test_the_time_is_written_in_the_form_that_users_scripts_read(tmp_path: Path) -> None:
    logs.configure(tmp_path, file_level="DEBUG", console_level="ERROR")
    log.info("x")
    (line,) = lines(tmp_path)
    assert line["ts"].endswith("+00:00")


def test_a_traceback_goes_into_its_own_field_of_the_same_line(tmp_path: Path) -> None:
    logs.configure(tmp_path, file_level="DEBUG", console_level="CRITICAL")
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("it failed")
    (line,) = lines(tmp_path)
    assert line["msg"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: no such thing")


def test_the_text_is_fixed_when_logged_although_it_is_written_later(tmp_path: Path) -> None:
    logs.configure(tmp_path, file_level="DEBUG", console_level="ERROR")
    waiting = ["a"]
    log.info("waiting: %s", waiting)
    waiting.clear()
    assert lines(tmp_path)[0]["msg"] == "waiting: ['a']"


def test_the_thread_that_logs_is_not_the_thread_that_writes(tmp_path: Path) -> None:
    seen: list[int] = []

    class Spy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(threading.get_ident())

    queued = logs.Enqueue(Spy())
    queued.handle(logs.warning("x"))
    queued.close()
    assert seen
    assert threading.get_ident() not in seen


def test_what_does_not_fit_the_queue_is_dropped_and_counted() -> None:
    entered, go_on = threading.Event(), threading.Event()
    written: list[str] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            go_on.wait(10)
            written.append(record.getMessage())

    queued = logs.Enqueue(Slow(), queue_max=3)
    queued.handle(logs.warning("0"))
    assert entered.wait(10)
    for number in range(1, 6):  # 1, 2 and 3 fit the queue
        queued.handle(logs.warning(str(number)))
    go_on.set()
    waiting = cast("Queue[Any]", queued.queue)
    while waiting.qsize():
        pass
    queued.handle(logs.warning("6"))
    queued.close()
    assert written == ["0", "1", "2", "3", "2 log lines were dropped: too many in too short a time", "6"]


def test_each_place_has_its_own_level(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(tmp_path, file_level="debug", console_level="WARNING")
    log.debug("detail")
    log.warning("trouble")
    assert [line["msg"] for line in lines(tmp_path)] == ["detail", "trouble"]
    console = capfd.readouterr().err
    assert "trouble" in console
    assert "detail" not in console


def test_libraries_that_chatter_are_quiet(tmp_path: Path) -> None:
    logs.configure(tmp_path, file_level="DEBUG", console_level="ERROR")
    for name in ("httpx", "httpcore.http11", "uvicorn.access"):
        logging.getLogger(name).info("a line for each request")
    log.info("mine")
    assert [line["msg"] for line in lines(tmp_path)] == ["mine"]


def test_router_and_agent_write_files_of_their_own(tmp_path: Path) -> None:
    logs.configure(tmp_path, name="herd-node", file_level="DEBUG", console_level="ERROR")
    log.info("x")
    assert len(lines(tmp_path, "herd-node")) == 1
    assert not (tmp_path / "logs" / "herd.jsonl").exists()


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(tmp_path, file_level="DEBUG", console_level="INFO")
    log.info("node %s", "\x1b[2Jash\x07")
    logs.shutdown()
    console = capfd.readouterr().err
    assert "ash" in console
    assert "\x1b" not in console
    assert "\x07" not in console


def test_the_file_turns_over_at_midnight_utc_and_thirty_are_kept(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    for day in range(1, 32):
        (directory / f"herd.jsonl.2026-01-{day:02}").write_text("{}\n")
    yesterday = directory / "herd.jsonl"
    yesterday.write_text('{"msg":"old"}\n')
    written = datetime(2026, 2, 1, 23, 59, tzinfo=UTC).timestamp()
    os.utime(yesterday, (written, written))
    logs.configure(tmp_path, file_level="DEBUG", console_level="ERROR")
    log.info("new")
    assert [line["msg"] for line in lines(tmp_path)] == ["new"]
    assert json.loads((directory / "herd.jsonl.2026-02-01").read_text())["msg"] == "old"
    kept = sorted(path.name for path in directory.glob("herd.jsonl.*"))
    assert len(kept) == logs.FILES_KEPT
    assert "herd.jsonl.2026-01-01" not in kept


def test_a_full_disk_is_told_once_and_does_not_stop_the_program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "herd.jsonl").symlink_to("/dev/full")
    logs.configure(tmp_path, file_level="DEBUG", console_level="ERROR")
    for number in range(3):
        log.error("line %d", number)
    logs.shutdown()
    console = capfd.readouterr().err
    assert console.count("cannot write the log file") == 1
    assert "No space left on device" in console
    assert "Traceback" not in console
    assert all(f"line {number}" in console for number in range(3))


def test_a_directory_that_cannot_be_made_does_not_stop_the_program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file where the directory should be")
    logs.configure(tmp_path / "home", file_level="DEBUG", console_level="WARNING")
    log.info("one")
    log.info("two")
    logs.shutdown()
    assert capfd.readouterr().err.count("cannot write the log file") == 1


def test_the_file_is_written_again_when_its_directory_comes_back(tmp_path: Path) -> None:
    told: list[str] = []

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    home = tmp_path / "home"
    home.write_text("in the way")
    file = logs.JsonFile(home / "logs" / "herd.jsonl", Console())
    file.handle(logs.warning("lost"))
    home.unlink()
    file.handle(logs.warning("kept"))
    file.close()
    assert json.loads((home / "logs" / "herd.jsonl").read_text())["msg"] == "kept"
    assert len(told) == 1


def test_a_log_directory_that_is_deleted_is_made_again_within_a_second(tmp_path: Path) -> None:
    now_s = 100.0
    path = tmp_path / "logs" / "herd.jsonl"
    file = logs.JsonFile(path, logging.NullHandler(), lambda: now_s)
    file.handle(logs.warning("opens the file"))
    file.handle(logs.warning("finds it in its place"))
    shutil.rmtree(tmp_path / "logs")
    now_s += logs.LOOK_EVERY_S / 2
    file.handle(logs.warning("not looked yet"))
    assert not path.exists()
    now_s += logs.LOOK_EVERY_S / 2
    file.handle(logs.warning("after"))
    file.close()
    assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == ["after"]


def test_a_log_file_that_was_moved_aside_gets_a_successor_of_the_same_name(tmp_path: Path) -> None:
    seconds = iter(range(10))
    path = tmp_path / "logs" / "herd.jsonl"
    file = logs.JsonFile(path, logging.NullHandler(), lambda: next(seconds))
    file.handle(logs.warning("old"))
    path.rename(path.with_name("herd.jsonl.1"))
    path.write_text("")
    file.handle(logs.warning("new"))
    file.handle(logs.warning("newer"))
    file.close()
    assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == ["new", "newer"]


def test_a_line_for_people_has_the_local_time_its_level_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    logs.console_handler().handle(logs.warning("trouble"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARNING trouble\n", capfd.readouterr().err)


def test_only_the_level_is_coloured() -> None:
    line = logs.ColouredLine().format(logs.warning("WARNING \x1b[31mof a node"))
    assert re.fullmatch(r"\S+ \S+ \x1b\[33mWARNING\x1b\[0m WARNING \ufffd\[31mof a node", line)


def test_configuring_again_replaces_the_first_configuration(tmp_path: Path) -> None:
    logs.configure(tmp_path / "a", file_level="DEBUG", console_level="ERROR")
    logs.configure(tmp_path / "b", file_level="DEBUG", console_level="ERROR")
    log.info("x")
    assert len(lines(tmp_path / "b")) == 1
    assert not (tmp_path / "a" / "logs" / "herd.jsonl").exists()


def test_a_level_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LOUD"):
        logs.configure(tmp_path, file_level="LOUD", console_level="INFO")
