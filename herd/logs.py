"""Log lines are data for whoever looks into trouble, and writing them must never hold up an answer.

The event log is the record of what happened; these lines are about the shell's own troubles. A call site hands over a
record and goes on; one thread formats and writes. Neither a full disk nor a read-only directory stops the program.
"""

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, TimedRotatingFileHandler
from pathlib import Path
from queue import Full, Queue
from typing import Any

import msgspec

from herd.errors import SettingsError

FILES_KEPT = 30
QUEUE_MAX_RECORDS = 10_000

#: How often at most the writer looks whether its file is still where its name says, seconds.
LOOK_EVERY_S = 1.0

#: What a line says it is about, when the call site gave it with `extra=`.
SUBJECTS = ("request_id", "node_id", "model", "queue_key")

#: Libraries that write a line or more for each request or packet, of which nobody has ever read one.
CHATTY = ("httpx", "httpcore", "hpack", "uvicorn", "uvicorn.access", "asyncio", "zeroconf", "filelock", "alembic")


def configure(home: Path, *, name: str = "herd", file_level: str, console_level: str) -> None:
    """Write JSON lines to `<home>/logs/<name>.jsonl` and short lines to stderr, both from a thread of their own.

    The file turns over at midnight UTC and 30 old ones are kept. Calling again replaces what the last call set up.
    Raises `SettingsError` for a level that does not exist.
    """
    shutdown()
    console = console_handler()
    console.setLevel(level(console_level))
    file = JsonFile(home / "logs" / f"{name}.jsonl", console)
    file.setLevel(level(file_level))
    queued = Enqueue(file, console)
    root = logging.getLogger()
    root.setLevel(min(file.level, console.level))
    root.addHandler(queued)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    atexit.register(shutdown)


def shutdown() -> None:
    """Write what is queued and close the files; without a `configure` before it, do nothing."""
    atexit.unregister(shutdown)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, Enqueue)]:
        root.removeHandler(handler)
        handler.close()


def level(word: str) -> int:
    """Return the number of a level; raises `SettingsError` where there is none of that name."""
    found = logging.getLevelNamesMapping().get(word.upper())
    if found is None:
        raise SettingsError(f"there is no log level {word!r}", hint="Use one of: DEBUG, INFO, WARNING, ERROR.")
    return found


class Enqueue(QueueHandler):
    """Hands records to the writing thread, and counts those that no longer fit."""

    def __init__(self, *handlers: logging.Handler, queue_max: int = QUEUE_MAX_RECORDS) -> None:
        records: Queue[Any] = Queue(queue_max)
        super().__init__(records)
        self._records = records
        self._handlers = handlers
        self._writer = QueueListener(records, *handlers, respect_handler_level=True)
        self._writer.start()
        self._lost = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Fix the text now, since its arguments may change before the thread sees them; a traceback can wait."""
        record.msg = record.getMessage()
        record.args = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue the record, or count it as lost."""
        try:
            if self._lost:
                self._records.put_nowait(warning("%d log lines were dropped: too many in too short a time", self._lost))
                self._lost = 0
            self._records.put_nowait(record)
        except Full:
            self._lost += 1

    def close(self) -> None:
        """Write what is queued, end the thread and close the files."""
        self._writer.stop()
        for handler in self._handlers:
            handler.close()
        super().close()


class JsonFile(TimedRotatingFileHandler):
    """The log file. When it cannot be written the console hears of it once, and again only after a recovery."""

    def __init__(self, path: Path, console: logging.Handler, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(path, when="midnight", utc=True, backupCount=FILES_KEPT, delay=True, encoding="utf-8")
        self.setFormatter(JsonLine())
        self._console = console
        self._error: BaseException | None = None
        self._monotonic_s = monotonic_s
        self._look_at_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if self._is_gone(self._monotonic_s()):
            self._let_go()
        before, self._error = self._error, None
        super().emit(record)
        if self._error is not None and before is None:
            self._console.handle(warning("cannot write the log file %s: %s", self.baseFilename, self._error))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it so
        """Remember what went wrong, and let go of the file so that the next line tries afresh."""
        del record
        self._error = sys.exc_info()[1]
        self._let_go()

    def _is_gone(self, now_s: float) -> bool:
        """Whether somebody has moved or deleted the file since: it would take lines, and nobody could read them."""
        if self.stream is None or now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + LOOK_EVERY_S
        try:
            here = Path(self.baseFilename).stat()
        except OSError:
            return True
        return not os.path.samestat(here, os.fstat(self.stream.fileno()))

    def _let_go(self) -> None:
        stream = self.stream
        self.stream = None  # pyright: ignore[reportAttributeAccessIssue] - logging itself does this to reopen
        if stream:
            with suppress(OSError):
                stream.close()

    def _open(self) -> Any:
        # Here and not at the start: the directory may come back, or somebody may have tidied it away.
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


class JsonLine(logging.Formatter):
    """One JSON object a line, in the shape that people already have scripts for."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        line: dict[str, str] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        given = record.__dict__
        line.update({subject: str(given[subject]) for subject in SUBJECTS if given.get(subject) is not None})
        return msgspec.json.encode(line).decode()


class ConsoleLine(logging.Formatter):
    """A line for a person. What nodes and clients sent is in it, so it carries no control character to the terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in super().format(record))


class ColouredLine(ConsoleLine):
    """The same line with its level in a colour, so that trouble is seen among much that is none."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        level = f"{record.levelname:<7}"
        colour = "31" if record.levelno >= logging.ERROR else "33" if record.levelno >= logging.WARNING else "2"
        return super().format(record).replace(level, f"\x1b[{colour}m{level}\x1b[0m", 1)


def console_handler() -> logging.Handler:
    """Return a handler for stderr: coloured on a terminal, plain where a service manager collects it."""
    handler = logging.StreamHandler()
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    handler.setFormatter(ColouredLine() if coloured else ConsoleLine())
    return handler


def warning(text: str, *args: object) -> logging.LogRecord:
    """Return a record of our own, for the handlers to write among the others."""
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, args, None)
