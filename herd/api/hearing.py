"""Agents repeat each mistake in every report; an operator needs to read of it once."""

import logging

import msgspec

from herd.reports.moves import Moves

logger = logging.getLogger(__name__)

#: How many warnings are remembered as given. Names come from the network, and must not fill the memory.
WARNED_MAX = 1000


class Hearing(msgspec.Struct, frozen=True, kw_only=True):
    """What the router remembers of the reports that it heard, apart from what they say."""

    moves: Moves = msgspec.field(default_factory=Moves)
    warned: set[tuple[str, str]] = msgspec.field(default_factory=set[tuple[str, str]])

    def warn_once(self, who: str, cause: str, text: str, *arguments: object, node_id: str | None = None) -> None:
        """Log a warning only the first time that a cause concerns `who`."""
        if (who, cause) in self.warned:
            return
        if len(self.warned) >= WARNED_MAX:
            self.warned.clear()
        self.warned.add((who, cause))
        logger.warning(text, *arguments, extra={"node_id": node_id})
