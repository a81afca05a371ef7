"""OpenAI's API as Ollama, llama.cpp and others serve it: server-sent events, and errors that are objects."""

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

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
    as_object,
    count,
    excerpt,
    given,
    is_object,
    milliseconds,
    positive,
)
from herd.wire.ollama import input_size

EVENTS_READ = 8
"""Events at the end of a stream that may carry usage, timings, a finish reason or an error."""

_ERROR_TYPES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
}


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    image_url: msgspec.Raw = ABSENT


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Part] | None = None


class _Completions(Body, gc=False):
    max_tokens: Any = None
    max_completion_tokens: Any = None

    @property
    def tokens_max(self) -> int | None:
        return positive(self.max_tokens) or positive(self.max_completion_tokens)


class _Chat(_Completions, gc=False):
    messages: list[_Message | None] | None = None
    tools: list[msgspec.Raw] | None = None

    @property
    def size(self) -> Size:
        characters = images = 0
        messages = self.messages or ()
        for message in messages:
            content = message.content if message is not None else None
            if isinstance(content, list):
                characters += sum(len(part.text) for part in content if part.text)
                images += sum(given(part.image_url) for part in content)
            elif content:
                characters += len(content)
        return Size(characters, len(messages), images)

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools)


class _Text(_Completions, gc=False):
    prompt: Any = None

    @property
    def size(self) -> Size:
        return input_size(self.prompt)

    @property
    def empty(self) -> bool:
        return not self.prompt


class _Embed(Body, gc=False):
    input: Any = None

    @property
    def size(self) -> Size:
        return input_size(self.input)


class _Choice(msgspec.Struct, gc=False):
    finish_reason: Any = None


class Usage(msgspec.Struct, gc=False):
    """The counters that every server of the family gives, though in a stream only when asked."""

    prompt_tokens: Any = None
    completion_tokens: Any = None


class Timings(msgspec.Struct, gc=False):
    """What llama.cpp says besides `usage`."""

    cache_n: Any = None
    prompt_n: Any = None
    prompt_ms: Any = None
    predicted_n: Any = None
    predicted_ms: Any = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    data: msgspec.Raw = ABSENT
    error: Any = None
    message: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)
_NAME_REQUIRED = partial(BadRequest, "model is required")
_NAME_EMPTY = partial(ModelNotFound, "model '' not found")


class OpenAI:
    """The OpenAI dialect."""

    name: DialectName = "openai"
    routes: Mapping[str, Route] = {
        "/v1/chat/completions": Route(
            kind="chat", read=msgspec.json.Decoder(_Chat).decode, model_missing=_NAME_REQUIRED
        ),
        "/v1/completions": Route(kind="generate", read=msgspec.json.Decoder(_Text).decode, model_missing=_NAME_EMPTY),
        "/v1/embeddings": Route(kind="embed", read=msgspec.json.Decoder(_Embed).decode, model_missing=_NAME_EMPTY),
    }
    body_missing = "EOF"
    stream: Stream = "events"
    stream_type = "text/event-stream"
    json_type = "application/json"
    error_type = "application/json"

    def error(self, status: int, message: str) -> bytes:
        """Spell an error as a whole body, with the words that Ollama uses for its type."""
        text = message or HTTPStatus.INTERNAL_SERVER_ERROR.phrase
        kind = _ERROR_TYPES.get(status, "api_error")
        return msgspec.json.encode({"error": {"message": text, "type": kind, "param": None, "code": None}}) + b"\n"

    def frame(self, message: str) -> bytes:
        """Spell an error as the last event of a stream; both SDKs raise on it, and on nothing less."""
        return b"data: " + self.error(HTTPStatus.INTERNAL_SERVER_ERROR, message) + b"\n"

    def complaint(self, body: bytes) -> str | None:
        """Read an error body."""
        answer = _read(body)
        message = as_object(answer.error).get("message") if answer is not None else None
        return message if isinstance(message, str) else None

    def ending(self, kind: Kind, tail: bytes) -> Ending:  # noqa: ARG002 (an event says itself what it is)
        """Read the last events of a stream; the first line may be cut off."""
        lines = [line for line in tail.splitlines() if line.startswith((b"data:", b"error:"))]
        finished = bool(lines) and lines[-1].partition(b":")[2].strip() == b"[DONE]"
        merged = _Answer()
        for line in reversed(lines[-EVENTS_READ - finished :]):
            event = _read(line.partition(b":")[2])
            if event is not None:
                merged.choices = merged.choices or _with_reason(event.choices)
                merged.usage = merged.usage or event.usage
                merged.timings = merged.timings or event.timings
                merged.error = merged.error or event.error or event.message
        return _ending(merged, finished=finished)

    def total(self, kind: Kind, body: bytes) -> Ending | None:
        """Read a whole answer; None if it is no object."""
        answer = _read(body)
        if answer is None:
            return Ending() if is_object(body) else None
        return _ending(answer, finished=given(answer.data) if kind == "embed" else answer.choices is not None)


def _ending(answer: _Answer, *, finished: bool) -> Ending:
    reason = answer.choices[0].finish_reason if answer.choices else None
    return Ending(
        finished=finished,
        prompt_tokens=prompt_tokens(answer.usage, answer.timings),
        completion_tokens=completion_tokens(answer.usage, answer.timings),
        finish_reason=excerpt(reason) if isinstance(reason, str) else "",
        prompt_ms=milliseconds(answer.timings.prompt_ms) if answer.timings else None,
        generate_ms=milliseconds(answer.timings.predicted_ms) if answer.timings else None,
        error=error_text(answer.error),
    )


def prompt_tokens(usage: Usage | None, timings: Timings | None) -> int | None:
    """Return the length of the whole prompt, cached tokens included."""
    if usage is not None and count(usage.prompt_tokens) is not None:
        return count(usage.prompt_tokens)
    if timings is None or count(timings.prompt_n) is None:
        return None
    return (count(timings.prompt_n) or 0) + (count(timings.cache_n) or 0)


def completion_tokens(usage: Usage | None, timings: Timings | None) -> int | None:
    """Return the length of the answer."""
    if usage is not None and count(usage.completion_tokens) is not None:
        return count(usage.completion_tokens)
    return count(timings.predicted_n) if timings is not None else None


def error_text(error: Any) -> str:
    """Return the words of an `error` value, whether a text or an object; empty if there is none."""
    text = as_object(error).get("message", "unknown error") if isinstance(error, dict) else error
    return excerpt(text) if isinstance(text, str) else ""


def _with_reason(choices: list[_Choice] | None) -> list[_Choice] | None:
    return choices if choices and choices[0].finish_reason else None


def _read(body: bytes) -> _Answer | None:
    try:
        return _ANSWER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


OPENAI = OpenAI()
