"""Ollama's own API: JSON lines, durations in nanoseconds, and zero values left out."""

import re
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import msgspec

from events.types import Dialect as DialectName
from events.types import Kind
from herd.errors import BadRequest, ModelNotFound
from herd.wire.dialect import (
    ABSENT,
    Body,
    Ending,
    Route,
    Size,
    Stream,
    count,
    excerpt,
    given,
    is_object,
    milliseconds,
    positive,
)

NS_PER_MS = 1e6

KEEP_ALIVE_MAX = 64
"""Characters of a duration; a longer one is none."""

_ZERO = re.compile(r"[+-]?(?:0|(?:(?:0+(?:\.0*)?|\.0+)(?:ns|us|µs|μs|ms|s|m|h))+)")  # Go takes both mu


def is_zero(keep_alive: Any) -> bool:
    """Whether a `keep_alive` asks for unloading: a zero, or a Go duration of zero such as the CLI's `"0s"`."""
    if isinstance(keep_alive, str):
        return len(keep_alive) <= KEEP_ALIVE_MAX and _ZERO.fullmatch(keep_alive) is not None
    return isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool) and keep_alive == 0


class _Options(msgspec.Struct, gc=False):
    num_ctx: Any = None
    num_predict: Any = None


class _Native(Body, gc=False):
    options: _Options | None = None
    keep_alive: Any = None

    @property
    def unloads(self) -> bool:
        return is_zero(self.keep_alive)

    @property
    def num_ctx(self) -> int | None:
        return positive(self.options.num_ctx) if self.options else None

    @property
    def tokens_max(self) -> int | None:
        return positive(self.options.num_predict) if self.options else None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    images: list[msgspec.Raw] | None = None


class _Chat(_Native, gc=False):
    messages: list[_Message | None] | None = None
    tools: list[msgspec.Raw] | None = None

    @property
    def size(self) -> Size:
        characters = images = 0
        messages = self.messages or ()
        for message in messages:
            if message is not None:
                characters += len(message.content or "")
                images += len(message.images or ())
        return Size(characters, len(messages), images)

    @property
    def empty(self) -> bool:
        return not self.messages

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools)


class _Generate(_Native, gc=False):
    prompt: str | None = None
    system: str | None = None
    images: list[msgspec.Raw] | None = None

    @property
    def size(self) -> Size:
        texts = [text for text in (self.system, self.prompt) if text]
        return Size(sum(map(len, texts)), len(texts), len(self.images or ()))

    @property
    def empty(self) -> bool:
        return not self.prompt


class _Vectors(_Native, gc=False):
    @property
    def unloads(self) -> bool:
        return False  # Ollama answers with no vectors and loads the model; zero means only that it leaves again


class _Embed(_Vectors, gc=False):
    input: Any = None

    @property
    def size(self) -> Size:
        return input_size(self.input)

    @property
    def empty(self) -> bool:
        return not self.input


class _Embeddings(_Vectors, gc=False):
    prompt: str | None = None

    @property
    def size(self) -> Size:
        return input_size(self.prompt)

    @property
    def empty(self) -> bool:
        return not self.prompt


def input_size(value: Any) -> Size:
    """Measure the input of an embedding: a text, a list of texts, or lists of token numbers."""
    inputs = cast("list[Any]", value if isinstance(value, list) else [] if value is None else [value])
    # A token number stands for about four characters.
    texts = [len(one) for one in inputs if isinstance(one, str)]
    lists = [4 * len(cast("list[Any]", one)) for one in inputs if isinstance(one, list)]
    numbers = len(inputs) - len(texts) - len(lists)
    return Size(sum(texts) + sum(lists) + 4 * numbers, len(texts) + len(lists))


class _Last(msgspec.Struct, gc=False):
    done: Any = None
    done_reason: Any = None
    load_duration: Any = None
    prompt_eval_count: Any = None
    prompt_eval_duration: Any = None
    eval_count: Any = None
    eval_duration: Any = None
    embeddings: msgspec.Raw = ABSENT
    embedding: msgspec.Raw = ABSENT
    error: Any = None


_NAME_REQUIRED = partial(BadRequest, "model is required")
_NAME_EMPTY = partial(ModelNotFound, "model '' not found")
_LAST = msgspec.json.Decoder(_Last)


class Ollama:
    """The native dialect."""

    name: DialectName = "ollama"
    routes: Mapping[str, Route] = {
        "/api/chat": Route(
            kind="chat", read=msgspec.json.Decoder(_Chat).decode, streaming=True, model_missing=_NAME_REQUIRED
        ),
        "/api/generate": Route(
            kind="generate", read=msgspec.json.Decoder(_Generate).decode, streaming=True, model_missing=_NAME_EMPTY
        ),
        "/api/embed": Route(kind="embed", read=msgspec.json.Decoder(_Embed).decode, model_missing=_NAME_EMPTY),
        "/api/embeddings": Route(
            kind="embed", read=msgspec.json.Decoder(_Embeddings).decode, model_missing=_NAME_REQUIRED
        ),
    }
    body_missing = "missing request body"
    stream: Stream = "lines"
    stream_type = "application/x-ndjson"
    json_type = "application/json; charset=utf-8"
    error_type = "application/json; charset=utf-8"

    def error(self, status: int, message: str) -> bytes:  # noqa: ARG002 (the native shape is the same for each status)
        """Spell an error as a whole body."""
        return msgspec.json.encode({"error": message or HTTPStatus.INTERNAL_SERVER_ERROR.phrase})

    def frame(self, message: str) -> bytes:
        """Spell an error as the last line of a stream."""
        return self.error(HTTPStatus.OK, message) + b"\n"

    def complaint(self, body: bytes) -> str | None:
        """Read an error body; in this family its text is never inside an object."""
        last = _read(body)
        return last.error if last is not None and isinstance(last.error, str) else None

    def ending(self, kind: Kind, tail: bytes) -> Ending | None:
        """Read the last line of a stream."""
        return self.total(kind, tail)

    def total(self, kind: Kind, body: bytes) -> Ending | None:
        """Read an object that ends an answer: the last line of a stream is one too."""
        last = _read(body)
        if last is None:
            return Ending() if is_object(body) else None
        if kind == "embed":
            finished = given(last.embeddings) or given(last.embedding)
            completion_tokens = None
        else:
            finished = last.done is True
            # Ollama leaves zeros out, so a finished answer without a count is an empty one.
            completion_tokens = count(last.eval_count) or 0 if finished else None
        return Ending(
            finished=finished,
            prompt_tokens=count(last.prompt_eval_count),
            completion_tokens=completion_tokens,
            finish_reason=excerpt(last.done_reason) if isinstance(last.done_reason, str) else "",
            load_ms=milliseconds(last.load_duration, per_ms=NS_PER_MS),
            prompt_ms=milliseconds(last.prompt_eval_duration, per_ms=NS_PER_MS),
            generate_ms=milliseconds(last.eval_duration, per_ms=NS_PER_MS),
            error=excerpt(last.error) if isinstance(last.error, str) else "",
        )


def _read(body: bytes) -> _Last | None:
    try:
        return _LAST.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


OLLAMA = Ollama()
