"""What a node may do wrong, as switches that a test can throw while requests run."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

import msgspec


def _nobody() -> None:
    pass


@dataclass(slots=True)
class Faults:
    """All off at first. A switch acts at once, also on answers that are already on their way.

    Only inference routes are spoiled, so that a node keeps looking healthy, unless `everywhere` is set. Lines are
    counted per answer: one NDJSON line or one SSE event is one line.
    """

    on_change: Callable[[], None] = field(default=_nobody, repr=False)

    everywhere: bool = False
    """Spoil inventory and health routes as well."""
    remaining: int | None = None
    """Spoil only this many more requests; None = all."""
    refuse: bool = False
    """Close the listener and each connection, a busy one when its answer is complete: a server that stops in order."""
    hang: bool = False
    """Accept and read, and answer nothing."""
    garbage: bool = False
    """Answer something that is not HTTP, and close."""
    reset_before_head: bool = False
    busy: bool = False
    """503 with the text of a full queue."""
    status: int = 0
    """Answer this status instead of doing the work; 0 = off. It may be one that HTTP does not know."""
    status_text: str = "the fake node was told to fail"
    empty_error_body: bool = False
    """Errors of every origin lose their body."""
    web_page: bool = False
    """Answer 200 and a page for people, as a proxy or a captive portal in front of the node does."""
    first_byte_delay_ms: float = 0.0
    """Hold the head of the answer back, with the slot taken."""
    content_type: str = ""
    """Say this instead of the true content type."""
    content_encoding: str = ""
    """Claim that the body is compressed, which it is not."""
    endless_head: bool = False
    """Send header after header, and never a body."""
    head_byte_delay_ms: float = 0.0
    """Send the head byte by byte, with so much time before each."""
    trickle: bool = False
    """Write byte by byte, each its own packet."""
    stall_after_lines: int | None = None
    """Send nothing more after so many lines, until the switch is taken back."""
    reset_after_lines: int | None = None
    end_after_lines: int | None = None
    """End the body properly, without the final record."""
    error_after_lines: int | None = None
    """Send an error in the stream, as Ollama does when its runner dies, and end."""
    error_text: str = "an error was encountered while running the model: unexpected EOF"
    big_final_bytes: int = 0
    """Make the final line at least this long."""
    big_reason_bytes: int = 0
    """Make the reason why the answer ended this long."""
    missing: tuple[str, ...] = ()
    """Names that the inventory lists and that answer 404."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        self.on_change()

    def clear(self) -> None:
        """Switch everything off."""
        for each in fields(self)[1:]:
            setattr(self, each.name, each.default)

    def update(self, switches: dict[str, Any]) -> None:
        """Throw switches by name, with values as JSON has them. Raises ValueError, and then changes nothing."""
        types = get_type_hints(Faults)
        del types["on_change"]
        if unknown := switches.keys() - types.keys():
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(types)}")
        values = {name: msgspec.convert(value, types[name]) for name, value in switches.items()}
        for name, value in values.items():
            setattr(self, name, value)

    def shown(self) -> dict[str, Any]:
        """The switches and their positions."""
        return {each.name: getattr(self, each.name) for each in fields(self)[1:]}
