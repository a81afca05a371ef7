"""Each family of clients says the same things in other words; what a family must be able to say is one seam."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, cast

import msgspec

from events.types import Dialect as DialectName
from events.types import Kind
from herd.errors import HerdError

COUNT_MAX = 1 << 53
"""Beyond this a number from outside is nonsense, and would not fit the log."""

MESSAGE_MAX = 500
"""Characters of a node's error text that are worth keeping."""

Stream = Literal["lines", "events"]


ABSENT = msgspec.Raw(b"")
"""The default of a field that is kept as its bytes: a union of `Raw` with anything else decodes only the else."""


class _Object(msgspec.Struct, gc=False):
    """Any JSON object; its fields are skipped."""


_OBJECT = msgspec.json.Decoder(_Object)


class Size(msgspec.Struct, frozen=True, gc=False):
    """How much a body asks a model to read."""

    characters: int
    messages: int
    images: int = 0

    @property
    def tokens(self) -> int:
        """The length of the prompt in tokens, estimated: four characters a token, 150 tokens an image."""
        return max(1, (self.characters + 16 * self.messages) // 4 + 150 * self.images)


class Body(msgspec.Struct, gc=False):
    """What routing needs of a body in any dialect; all other fields are skipped unread."""

    model: str | None = None
    stream: bool | None = None
    fallback_models: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Any = msgspec.UNSET
    user: Any = None

    @property
    def size(self) -> Size:
        """How much there is to read."""
        raise NotImplementedError

    @property
    def empty(self) -> bool:
        """Whether there is nothing to answer: the client only wants the model loaded or unloaded."""
        return False

    @property
    def unloads(self) -> bool:
        """Whether the model shall leave memory afterwards."""
        return False

    @property
    def uses_tools(self) -> bool:
        """Whether tools are offered to the model."""
        return False

    @property
    def num_ctx(self) -> int | None:
        """The context length that the client insists on."""
        return None

    @property
    def tokens_max(self) -> int | None:
        """The client's limit on the answer."""
        return None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One path of a dialect: what it is for, how its body is read, and what Ollama says when the model is missing."""

    kind: Kind
    read: Callable[[bytes], Body]
    """A strict decoder's `decode`."""
    streaming: bool = False
    """What an absent `stream` means."""
    model_missing: Callable[[], HerdError]


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What the end of an answer says of the whole. None means that the node did not say."""

    finished: bool = False
    """The answer has its terminator: a stream that only stops has not."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""
    load_ms: int | None = None
    prompt_ms: int | None = None
    generate_ms: int | None = None
    error: str = ""
    """The node's own words, if it ended with an error after the first byte."""

    @property
    def empty(self) -> bool:
        """Whether the model was asked for an answer and wrote none."""
        return self.finished and self.completion_tokens == 0 and self.finish_reason not in ("load", "unload")


class Dialect(Protocol):
    """A family of clients and servers that understand each other."""

    @property
    def name(self) -> DialectName:
        """The name in events and in DIALECTS."""
        ...

    @property
    def routes(self) -> Mapping[str, Route]:
        """The inference paths, by path."""
        ...

    @property
    def body_missing(self) -> str:
        """Ollama's text for a request without a body."""
        ...

    @property
    def stream(self) -> Stream:
        """How a stream is framed: JSON lines, or server-sent events."""
        ...

    @property
    def stream_type(self) -> str:
        """The content type of a stream."""
        ...

    @property
    def json_type(self) -> str:
        """The content type of a whole answer."""
        ...

    @property
    def error_type(self) -> str:
        """The content type of an error."""
        ...

    def error(self, status: int, message: str) -> bytes:
        """Spell an error as a whole body."""
        ...

    def frame(self, message: str) -> bytes:
        """Spell an error as the last item of a stream whose status is already sent."""
        ...

    def complaint(self, body: bytes) -> str | None:
        """Read the text of an error body of this family; None if it is not one."""
        ...

    def ending(self, kind: Kind, tail: bytes) -> Ending | None:
        """Read the end of a stream: the last line, or the last events; None if nothing can be read."""
        ...

    def total(self, kind: Kind, body: bytes) -> Ending | None:
        """Read a whole answer in one JSON object; None if it is not one."""
        ...


def is_object(body: bytes) -> bool:
    """Whether it is one JSON object, whatever its fields are."""
    try:
        _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def given(raw: msgspec.Raw) -> bool:
    """Whether a field is there and says something: null says nothing. Looks at no more than the first bytes."""
    return bytes(memoryview(raw)[:5]) not in (b"", b"null")


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty one in place of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def count(value: Any) -> int | None:
    """Return a plausible whole number, or None: what comes from outside may be anything."""
    if type(value) is int:  # and not bool, which is one too
        return value if 0 <= value <= COUNT_MAX else None
    return int(value) if isinstance(value, float) and 0 <= value <= COUNT_MAX else None


def positive(value: Any) -> int | None:
    """Return a number as given by a client where zero, minus one and nonsense mean that there is no limit."""
    return count(value) or None


def milliseconds(value: Any, *, per_ms: float = 1.0) -> int | None:
    """Return a duration in whole milliseconds, given how many of its units make one."""
    return None if count(value) is None else round(value / per_ms)


def excerpt(text: str) -> str:
    """Return the part of an error text that is worth keeping."""
    return text if len(text) <= MESSAGE_MAX else f"{text[:MESSAGE_MAX]}…"
