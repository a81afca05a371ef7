"""A command that fails says so in one line, says what to do next, and exits with a code that a script can use."""

import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import click

from events.store import ForeignDatabase, StoreError, StoreInUse, UnknownEvent
from herd.errors import HerdError, SettingsError, StartupError

OK = 0
BAD_NEWS = 1
USAGE = 2
UNREACHABLE = 3
BUG = 70
PIPE_CLOSED = 141
INTERRUPTED = 130

MEANINGS = {
    OK: "it worked, and the answer is good news",
    BAD_NEWS: "it worked, and the answer is bad news",
    USAGE: "wrong usage: a flag or a setting has no sense",
    UNREACHABLE: "the router could not be reached, or the log could not be opened",
    BUG: "a bug in herd",
}

#: With this in the environment a bug shows its traceback.
TRACEBACK_VARIABLE = "HERD_TRACEBACK"


class Unreachable(HerdError):
    """Who or what the command was to ask cannot be asked."""

    code = "unreachable"


class Program(click.Group):
    """A group of commands in which a command's returned number is its exit code, and every failure is one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, and in click's standalone mode leave the process with its exit code."""
        standalone = extra.pop("standalone_mode", True)
        if not standalone:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            code: Any = super().main(*args, standalone_mode=False, **extra)
        except click.Abort:
            sys.exit(INTERRUPTED)
        except click.UsageError as error:
            sys.exit(wrong_usage(error))
        except click.ClickException as error:
            sys.exit(complain(error.format_message(), "", USAGE))
        except (HerdError, StoreError, OSError) as error:
            sys.exit(complain(said(error), hint(error), exit_code(error)))
        except Exception as error:  # noqa: BLE001 - the top of the program: nobody above could name it either
            sys.exit(bug(error))
        sys.exit(code if isinstance(code, int) else OK)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the registry: what is needed first comes first."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has gone (`herd events export | head`) is no error worth words."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Else Python tries to flush what nobody reads when it exits, and complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)


def notes(*examples: str, codes: Mapping[int, str] | None = None) -> str:
    """Return the end of a command's help: examples, and what its exit codes mean where they say more than usual."""
    lines = ["\b", "Examples:" if len(examples) > 1 else "Example:", *(f"  {example}" for example in examples)]
    if codes:
        lines += ["", "\b", "Exit codes:", *(f"  {code}  {meaning}" for code, meaning in sorted(codes.items()))]
    return "\n".join(lines)


def complain(message: str, hint: str, code: int) -> int:
    """Write an error and its hint to stderr, a line each, and return the exit code."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {one_line(message)}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', bold=True)} {one_line(hint)}", err=True)
    return code


def warn(message: str, hint: str = "") -> None:
    """Write something that the user should know, although the command goes on."""
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {one_line(message)}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', bold=True)} {one_line(hint)}", err=True)


def one_line(text: str) -> str:
    """Return text without line breaks and control characters, whoever wrote it."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def wrong_usage(error: click.UsageError) -> int:
    """Report what was wrong with the command line; a group without a command gets its help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return USAGE
    path = error.ctx.command_path if error.ctx else "herd"
    return complain(error.format_message(), f"See {path} --help.", USAGE)


def said(error: HerdError | StoreError | OSError) -> str:
    """Return what went wrong, without the number that an operating system gives it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def hint(error: HerdError | StoreError | OSError) -> str:
    """Return what the user can do about an error, or nothing."""
    match error:
        case HerdError():
            return error.hint
        case ForeignDatabase():
            return "It was left as it is. Point --data-dir or FLEET_DATA_DIR at Herd's own directory."
        case StoreInUse():
            return "Another router writes there. Stop it, or choose another directory with --data-dir."
        case UnknownEvent():
            return "A newer herd wrote this log: update this one."
        case _:
            return ""


def exit_code(error: HerdError | StoreError | OSError) -> int:
    """Return the exit code for an error."""
    match error:
        case SettingsError():
            return USAGE
        case Unreachable() | StoreError() | OSError():
            return UNREACHABLE
        case StartupError() | HerdError():
            return BAD_NEWS


def bug(error: Exception) -> int:
    """Report what no one expected: one line, unless the user asks for all of it."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    return complain(
        f"unexpected {type(error).__name__}: {error}",
        f"This is a bug in herd. Run it again with {TRACEBACK_VARIABLE}=1 and report what it prints.",
        BUG,
    )
