"""A client and a node that speak different dialects need somebody between them who loses nothing that has a word there.

Clients of the OpenAI dialect need nobody towards Ollama, which speaks it itself.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from events.types import Dialect as DialectName
from herd.wire import from_openai, to_openai
from herd.wire.request import Parsed

__all__ = ["TRANSLATIONS", "Answer", "Sending", "Translation"]

Sending = to_openai.Sending


class Answer(Protocol):
    """Turns a node's answer into the client's, chunk by chunk."""

    @property
    def content_type(self) -> str:
        """The content type that the client gets."""
        ...

    def feed(self, chunk: bytes, now: int) -> bytes:
        """Take the next bytes from the node and return what the client gets for them, which may be nothing yet.

        Returns whole lines only; nothing at all where the answer is one object. `now` is in nanoseconds since the
        epoch. Raises `NodeUnreachable` (cause `protocol`) when the node speaks another language altogether.
        """
        ...

    def finish(self, now: int) -> bytes:
        """Return the rest when the node has closed its stream; an error frame if it did so too early.

        Raises `NodeUnreachable` (cause `protocol`) when a whole answer cannot be read; nothing was sent then.
        """
        ...


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed between one dialect of clients and another of nodes."""

    local: Callable[[Parsed, int], bytes | None]
    """`local(parsed, now)`: the whole answer, where the node knows no such request and the router answers itself.

    Loading and unloading: a server of one model cannot do either, and has it in memory all the time.
    """
    request: Callable[[Parsed, bytes, str], Sending]
    """`request(parsed, body, model)`: what the node is sent, under the node's own name for the model.

    Raises `BadRequest` for what the node's dialect cannot say at all.
    """
    answer: Callable[[Parsed, int], Answer]
    """`answer(parsed, started)`: the translator of one answer; `started` is when the request was sent, nanoseconds."""


TRANSLATIONS: Mapping[tuple[DialectName, DialectName], Translation] = {
    ("ollama", "openai"): Translation(local=from_openai.local, request=to_openai.request, answer=from_openai.answer),
}
"""By client and node. A pair that is not here needs no translation."""
