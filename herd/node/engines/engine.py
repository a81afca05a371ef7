"""The agent reports on an inference server without knowing which; each kind is one file beside this one."""

from pathlib import Path
from typing import Protocol

from herd.wire import heartbeat as wire

#: An engine on the same machine answers these questions at once, or is in trouble. Seconds.
ANSWER_TIMEOUT_S = 3.0


class Engine(Protocol):
    """An inference server beside the agent."""

    @property
    def models_dir(self) -> Path:
        """Where it keeps its models; need not exist yet."""
        ...

    @property
    def trouble(self) -> str:
        """Why it cannot serve, in a sentence for the operator; empty while all is well."""
        ...

    async def report(self) -> wire.Engine:
        """Return its state now. An engine that is down is a state, and raises nothing."""
        ...

    async def be_reachable_at(self, host: str) -> None:
        """Serve at this address of the machine, loopback where the router is here too; do nothing if that is so."""
        ...

    async def close(self) -> None:
        """End what the agent started; an engine that was here before stays."""
        ...
