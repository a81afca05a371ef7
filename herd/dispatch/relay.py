"""Between client and node stands a relay per attempt: bytes untouched where both speak one dialect, else translated."""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

from events.types import Change
from herd.wire import DIALECTS
from herd.wire.dialect import Ending
from herd.wire.ending import Watch, whole
from herd.wire.request import Parsed, stripped
from herd.wire.translate import TRANSLATIONS, Translation
from projections.fleet import Node

Now = Callable[[], int]


def relay_for(parsed: Parsed, body: bytes, node: Node, *, now: Now) -> "Relay":
    """Return the relay for one attempt at one node. Raises `BadRequest` for what the node's dialect cannot say."""
    translation = TRANSLATIONS.get((parsed.dialect, node.engine.dialect))
    if translation is None:
        return Passthrough(parsed, body)
    return Translated(parsed, body, node, translation, now=now)


class Relay(Protocol):
    """One attempt's way from the client's body to the client's answer."""

    @property
    def path(self) -> str:
        """Path to ask on the node."""
        ...

    @property
    def body(self) -> bytes:
        """Body to send to the node."""
        ...

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the node is told otherwise than the client said it."""
        ...

    @property
    def sent_model(self) -> str:
        """The model's name as sent, where it differs from the client's."""
        ...

    @property
    def local(self) -> bytes | None:
        """The whole answer, where the node need not be asked."""
        ...

    @property
    def answer_bytes(self) -> int:
        """Bytes of the node's answer so far."""
        ...

    def streams(self, content_type: bytes) -> bool:
        """Whether an answer of this type is to be passed on as it comes, and not held until it is whole."""
        ...

    def content_type(self, upstream: bytes) -> bytes:
        """Return the type that the client is told, given the node's."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """Take a piece of a stream and return what the client gets of it now."""
        ...

    def rest(self) -> bytes:
        """Return what the client still gets after the stream's good end."""
        ...

    def whole(self, body: bytes) -> tuple[bytes, Ending | None]:
        """Take a whole answer; return the client's and how it ended, or None where it is no JSON object."""
        ...

    def broken(self, text: str) -> bytes:
        """Return the client's last bytes of a stream that the node broke off."""
        ...

    def ending(self) -> Ending:
        """Return what the end of the answer says."""
        ...


class Passthrough:
    """Client and node speak one dialect: the bytes pass, and their end is watched."""

    local: bytes | None = None
    sent_model = ""

    def __init__(self, parsed: Parsed, body: bytes) -> None:
        self.path = parsed.path
        self.body = stripped(body) if parsed.strip else body
        self.changes = (
            (Change(field="metadata, fallback_models", why="they speak to the router"),) if parsed.strip else ()
        )
        self._dialect = DIALECTS[parsed.dialect]
        self._parsed = parsed

    @cached_property
    def _watch(self) -> Watch:
        return Watch(self._parsed.dialect, self._parsed.kind, streaming=self._parsed.streaming)

    @property
    def answer_bytes(self) -> int:
        return self._watch.bytes

    def streams(self, content_type: bytes) -> bool:
        return self._parsed.streaming and not content_type.startswith(b"application/json")

    def content_type(self, upstream: bytes) -> bytes:
        return upstream or self._dialect.json_type.encode()

    def feed(self, chunk: bytes) -> bytes:
        self._watch.feed(chunk)
        return chunk

    def rest(self) -> bytes:
        return b""

    def whole(self, body: bytes) -> tuple[bytes, Ending | None]:
        return body, whole(self._parsed.dialect, self._parsed.kind, body)

    def broken(self, text: str) -> bytes:
        frame = self._dialect.frame(text)
        return b"\n" + frame if self._watch.mid_line else frame

    def ending(self) -> Ending:
        return self._watch.ending()


class Translated:
    """Client and node speak different dialects, and a translator stands between."""

    def __init__(self, parsed: Parsed, body: bytes, node: Node, translation: Translation, *, now: Now) -> None:
        self.local = translation.local(parsed, now())
        self.path, self.body, self.changes, self.sent_model = parsed.path, b"", (), ""
        if self.local is None:
            model = node.models.get(parsed.model)
            name = model.name if model else parsed.asked
            sending = translation.request(parsed, body, name)
            self.path, self.body, self.changes = sending.path, sending.body, sending.changes
            self.sent_model = name if name != parsed.asked else ""
        self._answer = translation.answer(parsed, now())
        self._now = now
        self._parsed = parsed
        self._dialect = DIALECTS[parsed.dialect]
        self._watch = Watch(parsed.dialect, parsed.kind, streaming=parsed.streaming)

    @property
    def answer_bytes(self) -> int:
        return self._watch.bytes

    def streams(self, content_type: bytes) -> bool:  # noqa: ARG002 (what the client asked decides)
        return self._parsed.streaming

    def content_type(self, upstream: bytes) -> bytes:  # noqa: ARG002 (the translator decides)
        return (self._dialect.json_type if self.local is not None else self._answer.content_type).encode()

    def feed(self, chunk: bytes) -> bytes:
        return self._seen(self._answer.feed(chunk, self._now()))

    def rest(self) -> bytes:
        return self._seen(self._answer.finish(self._now()))

    def whole(self, body: bytes) -> tuple[bytes, Ending | None]:
        out = self._answer.feed(body, self._now()) + self._answer.finish(self._now())
        return out, whole(self._parsed.dialect, self._parsed.kind, out)

    def broken(self, text: str) -> bytes:
        return self._dialect.frame(text)

    def ending(self) -> Ending:
        if self.local is not None:
            return self._dialect.total(self._parsed.kind, self.local) or Ending()
        return self._watch.ending()

    def _seen(self, out: bytes) -> bytes:
        # The client's own bytes are watched, not the node's: what the log says is what the client was told.
        self._watch.feed(out)
        return out
