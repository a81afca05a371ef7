"""What a command starts must end with it, in good order if that can be had, and with all that it started itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress

import click

from herd.errors import StartupError

Process = subprocess.Popen[bytes]


class Children:
    """Programs of ours that run beside this one."""

    def __init__(self, logs: str) -> None:
        """`logs` is where a user finds out why one ended."""
        self._logs = logs
        self._started: list[tuple[str, Process, float]] = []

    def start(
        self, name: str, module: str, arguments: list[str], environment: dict[str, str], *, grace_s: float
    ) -> None:
        """Start `main` of a module; in the end it gets `grace_s` seconds to stop in good order."""
        code = f"from {module} import main; main()"
        # A group of its own: Ctrl-C in a terminal reaches it, and all that it starts, through us and in order.
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, start_new_session=True)
        self._started.append((name, process, grace_s))

    def check(self) -> None:
        """Raise `StartupError` if one of them has ended by itself."""
        for name, process, _ in self._started:
            if process.poll() is not None:
                if any(other.poll() is None for _, other, _ in self._started):
                    # The rest may take its whole grace, and who waits should know what for.
                    click.echo(
                        f"\n{name} has ended. Stopping the rest; Ctrl-C does not wait for running requests.", err=True
                    )
                raise StartupError(
                    f"{name} ended with code {process.returncode}", hint=f"Its reason stands above, or in {self._logs}."
                )

    def stop(self) -> None:
        """Stop all of them, the last that was started first; those that are stopped already stay so."""
        ending = [(process, grace_s) for _, process, grace_s in reversed(self._started)]
        self._started.clear()
        stop(ending)


@contextmanager
def children(logs: str) -> Generator[Children]:
    """Yield a keeper of processes, and stop them in the end, whatever it is."""
    kept = Children(logs)
    with interrupts():
        try:
            yield kept
        except KeyboardInterrupt:
            click.echo("\nStopping when running requests are finished. Ctrl-C again does not wait for them.", err=True)
            kept.stop()
            click.echo("Stopped.", err=True)
            raise
        finally:
            kept.stop()


def stop(processes: list[tuple[Process, float]]) -> None:
    """End processes one after the other, in good order within their grace; then at once whatever is left of them."""
    try:
        for process, grace_s in processes:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
    except KeyboardInterrupt:
        click.echo("Stopping at once.", err=True)
    finally:
        for process, _ in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def interrupts() -> Generator[None]:
    """Let a polite kill and a closed terminal end us as Ctrl-C does: in good order."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
