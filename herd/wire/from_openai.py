"""The answer of an OpenAI-compatible server, said as Ollama says it: to a native client no node looks different."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from herd.errors import NodeUnreachable
from herd.wire.dialect import ABSENT, count, given
from herd.wire.ollama import OLLAMA
from herd.wire.openai import Timings, Usage, completion_tokens, error_text, prompt_tokens
from herd.wire.request import Parsed

LINE_MAX_BYTES = 16 * 1024 * 1024
"""A line, or the arguments of tool calls, beyond this size is not an answer but an accident."""

WHOLE_MAX_BYTES = 256 * 1024 * 1024
"""An answer in one object; a large batch of embeddings is a hundred megabytes."""

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


def local(parsed: Parsed, now: int) -> bytes | None:
    """Answer a request that only loads or unloads: the server has its one model in memory and keeps it there."""
    if not (parsed.is_load or parsed.is_unload):
        return None
    if parsed.path == "/api/embeddings":
        return msgspec.json.encode({"embedding": []})
    if parsed.kind == "embed":
        return msgspec.json.encode({"model": parsed.asked, "embeddings": []})
    reason = "load" if parsed.is_load else "unload"
    return msgspec.json.encode({**_item(parsed, now), "done": True, "done_reason": reason})


def answer(parsed: Parsed, started: int) -> "Lines | Whole":
    """Return the translator of the answer to one request."""
    return Lines(parsed, started) if parsed.streaming else Whole(parsed, started)


class _FunctionDelta(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _FunctionDelta | None = None


class _Said(msgspec.Struct, gc=False):
    """A whole message, or what a chunk adds to it."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: msgspec.Raw = ABSENT


class _Choice(msgspec.Struct, gc=False):
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    @property
    def said(self) -> _Said:
        return self.delta or self.message or _Said(content=self.text)


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None
    message: Any = None
    """The text of an error in the older form, where the field of the event is called `error`."""


class _Vector(msgspec.Struct, gc=False):
    embedding: msgspec.Raw
    index: int = 0


class _Vectors(msgspec.Struct, gc=False):
    data: list[_Vector]
    usage: Usage | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)
_VECTORS = msgspec.json.Decoder(_Vectors)


class _Calls:
    """Tool calls, whose arguments arrive in pieces."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._size = 0

    def add(self, deltas: list[_CallDelta]) -> None:
        for place, delta in enumerate(deltas):
            index = place if delta.index is None else delta.index
            function = delta.function or _FunctionDelta()
            name, called, pieces = self._calls.get(index, ("", "", []))
            self._size += len(function.arguments or "")
            if self._size > LINE_MAX_BYTES:
                raise NodeUnreachable("the node's tool call has no end", cause="protocol")
            pieces.append(function.arguments or "")
            self._calls[index] = (delta.id or name, function.name or called, pieces)

    def whole(self) -> tuple[list[dict[str, Any]], str]:
        """Return the complete calls, and the text of those whose arguments were cut off."""
        calls: list[dict[str, Any]] = []
        broken: list[str] = []
        for index, (name, called, pieces) in sorted(self._calls.items()):
            arguments = _object("".join(pieces))
            if arguments is None:
                broken.append(f"{called}({''.join(pieces)}")
                continue
            function = {"index": index, "name": called, "arguments": arguments}
            calls.append({"id": name, "function": function} if name else {"function": function})
        return calls, "\n".join(broken)


class _Counters:
    """What the last line of a native answer says of the whole."""

    def __init__(self, started: int) -> None:
        self._started = started
        self._first: int | None = None
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self.reason = ""

    def see(self, chunk: _Chunk, now: int) -> None:
        if self._first is None:
            self._first = now
        self._usage = chunk.usage or self._usage
        self._timings = chunk.timings or self._timings
        if chunk.choices and chunk.choices[0].finish_reason:
            self.reason = chunk.choices[0].finish_reason

    def last(self, now: int, *, streamed: bool) -> dict[str, Any]:
        """Return the fields of the ending; where the node gave no durations, those that were seen from here."""
        timings = self._timings or Timings()
        first = self._first if streamed and self._first is not None else None
        counters = {
            "total_duration": now - self._started,
            "prompt_eval_count": prompt_tokens(self._usage, self._timings),
            "prompt_eval_duration": _nanoseconds(timings.prompt_ms, None if first is None else first - self._started),
            "eval_count": completion_tokens(self._usage, self._timings),
            "eval_duration": _nanoseconds(timings.predicted_ms, None if first is None else now - first),
        }
        done = {"done": True, "done_reason": "length" if self.reason == "length" else "stop"}
        return done | {name: value for name, value in counters.items() if value}


class Lines:
    """Server-sent events in, JSON lines out, however the bytes are cut."""

    content_type = OLLAMA.stream_type

    def __init__(self, parsed: Parsed, started: int) -> None:
        self._parsed = parsed
        self._pieces: list[bytes] = []
        self._size = 0
        self._calls = _Calls()
        self._counters = _Counters(started)
        self._over = False

    def feed(self, chunk: bytes, now: int) -> bytes:
        """Take bytes of the node and return the lines that they complete."""
        self._pieces.append(chunk)
        if b"\n" not in chunk:
            self._size += len(chunk)
            if self._size > LINE_MAX_BYTES:
                raise NodeUnreachable("the node's stream has a line without end", cause="protocol")
            return b""
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest]
        self._size = len(rest)
        return b"".join([self._line(line, now) for line in lines])

    def finish(self, now: int) -> bytes:
        """Return what is left when the node closed its stream."""
        written = self._line(b"".join(self._pieces), now)
        self._pieces.clear()
        if self._over:
            return written
        if self._counters.reason:
            return written + self._end(now)
        self._over = True
        return written + OLLAMA.frame("an error was encountered while running the model: unexpected EOF")

    def _line(self, line: bytes, now: int) -> bytes:
        field, _, value = line.partition(b":")
        payload = value.strip()
        if self._over or field not in (b"data", b"error") or not payload:
            return b""
        if payload == b"[DONE]":
            return self._end(now)
        try:
            chunk = _CHUNK.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NodeUnreachable("the node's stream cannot be read", cause="protocol") from error
        if field == b"error" or chunk.error is not None:  # llama.cpp's older form
            self._over = True
            return OLLAMA.frame(error_text(chunk.error or chunk.message) or "the node reported an error")
        self._counters.see(chunk, now)
        return self._say(chunk.choices[0], now) if chunk.choices else b""

    def _say(self, choice: _Choice, now: int) -> bytes:
        said = choice.said
        if said.tool_calls:
            self._calls.add(said.tool_calls)
        content, thinking = said.content or "", said.reasoning_content or said.reasoning or ""
        if not content and not thinking:
            return b""
        item = _item(self._parsed, now, content=content, thinking=thinking)
        return _written({**item, **_logprobs(choice), "done": False})

    def _end(self, now: int) -> bytes:
        self._over = True
        calls, broken = self._calls.whole()
        written = b""
        if calls or broken:
            written = _written({**_item(self._parsed, now, content=broken, calls=calls), "done": False})
        return written + _written({**_item(self._parsed, now), **self._counters.last(now, streamed=True)})


class Whole:
    """One object in, one object out."""

    content_type = OLLAMA.json_type

    def __init__(self, parsed: Parsed, started: int) -> None:
        self._parsed = parsed
        self._started = started
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes, now: int) -> bytes:  # noqa: ARG002 (one shape for both translators)
        """Keep the next bytes; the object can be translated only when it is complete."""
        self._size += len(chunk)
        if self._size > WHOLE_MAX_BYTES:
            raise NodeUnreachable("the node's answer has no end", cause="protocol")
        self._pieces.append(chunk)
        return b""

    def finish(self, now: int) -> bytes:
        """Return the whole answer."""
        body = b"".join(self._pieces)
        try:
            return self._vectors(body, now) if self._parsed.kind == "embed" else self._text(body, now)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NodeUnreachable("the node's answer cannot be read", cause="protocol") from error

    def _vectors(self, body: bytes, now: int) -> bytes:
        answer = _VECTORS.decode(body)
        vectors = [vector.embedding for vector in sorted(answer.data, key=lambda vector: vector.index)]
        if self._parsed.path == "/api/embeddings":
            return msgspec.json.encode({"embedding": vectors[0] if vectors else []})
        counters = {"total_duration": now - self._started, "prompt_eval_count": prompt_tokens(answer.usage, None)}
        said = {name: value for name, value in counters.items() if value}
        return msgspec.json.encode({"model": self._parsed.asked, "embeddings": vectors, **said})

    def _text(self, body: bytes, now: int) -> bytes:
        whole = _CHUNK.decode(body)
        if not whole.choices:
            raise NodeUnreachable("the node's answer has no choices", cause="protocol")
        counters = _Counters(self._started)
        counters.see(whole, now)
        choice = whole.choices[0]
        said = choice.said
        calls = _Calls()
        calls.add(said.tool_calls or [])
        complete, broken = calls.whole()
        content = "\n".join(text for text in (said.content, broken) if text)
        item = _item(
            self._parsed, now, content=content, thinking=said.reasoning_content or said.reasoning or "", calls=complete
        )
        return msgspec.json.encode({**item, **_logprobs(choice), **counters.last(now, streamed=False)})


def _item(
    parsed: Parsed, now: int, *, content: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the part that every item of a native answer has."""
    more: dict[str, Any] = ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
    item: dict[str, Any] = {"model": parsed.asked, "created_at": _rfc3339(now)}
    if parsed.kind == "chat":
        return item | {"message": {"role": "assistant", "content": content, **more}}
    return item | {"response": content, **more}


def _written(item: dict[str, Any]) -> bytes:
    return msgspec.json.encode(item) + b"\n"


def _logprobs(choice: _Choice) -> dict[str, Any]:
    if choice.logprobs is None or not given(choice.logprobs.content):
        return {}
    return {"logprobs": choice.logprobs.content}


def _object(text: str) -> msgspec.Raw | None:
    """Return the text of an object as JSON in one line, or None if it is not one; no arguments are an empty object."""
    try:
        compact = msgspec.json.format(text.strip() or "{}", indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return None
    return msgspec.Raw(compact) if compact.startswith("{") else None


def _nanoseconds(value_ms: Any, otherwise: int | None) -> int | None:
    return otherwise if count(value_ms) is None else round(value_ms * NS_PER_MS)


def _rfc3339(now: int) -> str:
    seconds, rest = divmod(now, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
