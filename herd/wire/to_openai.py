"""A native request, said in the words of an OpenAI-compatible server such as llama.cpp's."""

from typing import Any

import msgspec

from events.types import Change
from herd.errors import BadRequest
from herd.wire import large, lenient
from herd.wire.dialect import ABSENT, count, given
from herd.wire.request import Parsed

SAME_OPTIONS = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "presence_penalty", "frequency_penalty",
    "repeat_penalty", "repeat_last_n",
)  # fmt: skip
"""Options that llama.cpp's server takes under the same name."""

LOST_OPTIONS = ("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
LOST_FIELDS = ("keep_alive", "truncate", "shift", "template", "context")
"""What is fixed when an OpenAI-compatible server starts, or has no word there."""

IMAGES_MAX = 10_000
"""Images in one message; no model looks at a hundredth of it."""

_LOST = "an OpenAI-compatible server has no such setting"
_THINK_LEVELS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
_IMAGE_TYPES = ((b"/9j/", "jpeg"), (b"iVBORw0KGgo", "png"), (b"UklGR", "webp"), (b"R0lGOD", "gif"))


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is sent in place of the client's request."""

    path: str
    body: bytes
    changes: tuple[Change, ...] = ()
    """What the client asked for and the node cannot be told."""


def request(parsed: Parsed, body: bytes, model: str) -> Sending:
    """Translate a native request. Raises `BadRequest` for what the other dialect cannot say."""
    if large.has_too_many_values(body):
        raise BadRequest(
            f"this request has more than {large.VALUES_MAX} values, too many for a node that is no Ollama; send fewer"
        )
    if parsed.kind == "embed":
        return _embed(parsed, body, model)
    if parsed.kind == "generate":
        return _generate(parsed, body, model)
    return _chat(parsed, body, model)


class _Function(msgspec.Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)
    id: str | None = None


class _Message(msgspec.Struct):
    role: str = "user"
    content: str | None = None
    thinking: str | None = None
    images: msgspec.Raw = ABSENT
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Asked(msgspec.Struct):
    options: dict[str, msgspec.Raw] | None = None
    format: msgspec.Raw = ABSENT
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    keep_alive: msgspec.Raw = ABSENT
    truncate: msgspec.Raw = ABSENT
    shift: msgspec.Raw = ABSENT
    template: msgspec.Raw = ABSENT
    context: msgspec.Raw = ABSENT


class _Chat(_Asked):
    messages: list[_Message] = []
    tools: msgspec.Raw = ABSENT


class _Generate(_Asked):
    prompt: str = ""
    system: str | None = None
    suffix: str | None = None
    images: msgspec.Raw = ABSENT
    raw: bool | None = None


class _Embed(msgspec.Struct):
    input: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    dimensions: int | None = None
    options: dict[str, msgspec.Raw] | None = None
    keep_alive: msgspec.Raw = ABSENT
    truncate: msgspec.Raw = ABSENT


_CHAT = msgspec.json.Decoder(_Chat)
_GENERATE = msgspec.json.Decoder(_Generate)
_IMAGES = msgspec.json.Decoder(list[msgspec.Raw])
_EMBED = msgspec.json.Decoder(_Embed)


def _chat(parsed: Parsed, body: bytes, model: str) -> Sending:
    asked = lenient.decode_folded(_CHAT.decode, body)
    said: dict[str, Any] = {"model": model, "messages": _messages(asked.messages)}
    if "tools" in parsed.needs:
        said["tools"] = asked.tools
    said |= _common(parsed, asked) | _thinking(asked.think)
    return Sending(path="/v1/chat/completions", body=msgspec.json.encode(said), changes=_lost(asked))


def _generate(parsed: Parsed, body: bytes, model: str) -> Sending:
    asked = lenient.decode_folded(_GENERATE.decode, body)
    if asked.suffix:
        raise BadRequest(f'"{parsed.asked}" does not support insert')
    if asked.raw:
        if _images(asked.images):
            raise BadRequest("raw prompts with images are not supported by this model's server")
        said = {"model": model, "prompt": asked.prompt, **_common(parsed, asked)}
        return Sending(path="/v1/completions", body=msgspec.json.encode(said), changes=_lost(asked))
    system = [_Message(role="system", content=asked.system)] if asked.system else []
    messages = _messages([*system, _Message(content=asked.prompt, images=asked.images)])
    said = {"model": model, "messages": messages, **_common(parsed, asked), **_thinking(asked.think)}
    return Sending(path="/v1/chat/completions", body=msgspec.json.encode(said), changes=_lost(asked))


def _embed(parsed: Parsed, body: bytes, model: str) -> Sending:
    asked = lenient.decode_folded(_EMBED.decode, body)
    text = asked.prompt if parsed.path == "/api/embeddings" else asked.input
    # The format is said aloud, because a server may prefer base64 and a native client wants numbers.
    said: dict[str, Any] = {"model": model, "input": text, "encoding_format": "float"}
    if asked.dimensions:
        said["dimensions"] = asked.dimensions
    return Sending(path="/v1/embeddings", body=msgspec.json.encode(said), changes=_lost(asked))


def _common(parsed: Parsed, asked: _Asked) -> dict[str, Any]:
    """Translate what chat and generate share."""
    options = asked.options or {}
    said: dict[str, Any] = {name: options[name] for name in SAME_OPTIONS if given(options.get(name, ABSENT))}
    if given(options.get("num_predict", ABSENT)):
        limit = _whole_number("num_predict", options["num_predict"])
        if limit > 0:  # -1 and -2 mean no limit, which is what saying nothing means there
            said["max_tokens"] = limit
    if given(asked.format):
        said |= _format(bytes(asked.format))
    if asked.logprobs:
        said["logprobs"] = True
        if asked.top_logprobs:
            said["top_logprobs"] = asked.top_logprobs
    said["stream"] = parsed.streaming
    if parsed.streaming:
        said["stream_options"] = {"include_usage": True}
    return said


def _format(raw: bytes) -> dict[str, Any]:
    if raw == b'""':
        return {}
    if raw == b'"json"':
        return {"response_format": {"type": "json_object"}}
    if not raw.startswith(b"{"):
        raise BadRequest(f'invalid format: {raw[:80].decode("utf-8", "replace")}; expected "json" or a JSON schema')
    schema = {"name": "answer", "strict": True, "schema": msgspec.Raw(raw)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _thinking(think: bool | str | None) -> dict[str, Any]:
    """Say it in both ways that templates know: as a switch, and as an effort."""
    if think is None or think == "":
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think not in _THINK_LEVELS:
        raise BadRequest(f'invalid think value: {think!r} (must be "high", "medium", "low", "max", true, or false)')
    effort = _THINK_LEVELS[think]
    return {
        "reasoning_effort": effort,
        "chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": effort},
    }


def _messages(messages: list[_Message]) -> list[dict[str, Any]]:
    """Translate messages. A call without an id gets one, since the dialect ties results to calls by id only."""
    translated: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    """Ids and names of calls that have no result yet, oldest first."""
    numbered = 0
    for message in messages:
        role = message.role.lower()
        said: dict[str, Any] = {"role": role, "content": _content(message)}
        if message.thinking:
            said["reasoning_content"] = message.thinking
        if message.tool_calls:
            ids = [call.id or f"call_{numbered + place}" for place, call in enumerate(message.tool_calls)]
            numbered += len(ids)
            said["tool_calls"] = [_call(*pair) for pair in zip(ids, message.tool_calls, strict=True)]
            open_calls = [(one, call.function.name) for one, call in zip(ids, message.tool_calls, strict=True)]
        if role == "tool":
            said |= _result(message, open_calls)
        translated.append(said)
    return translated


def _content(message: _Message) -> str | list[dict[str, Any]]:
    """Return the text, which must be there even if empty, or the parts where there are images."""
    images = _images(message.images)
    if not images:
        return message.content or ""
    text = [{"type": "text", "text": message.content}] if message.content else []
    return [*text, *({"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in images)]


def _images(raw: msgspec.Raw) -> list[msgspec.Raw]:
    if not given(raw):
        return []
    if bytes(raw).count(b",") > IMAGES_MAX:
        raise BadRequest(f"a message may hold up to {IMAGES_MAX} images")
    try:
        return _IMAGES.decode(raw)
    except msgspec.DecodeError as error:
        raise BadRequest("images must be a list of base64 strings") from error


def _data_uri(image: msgspec.Raw) -> msgspec.Raw:
    """Return base64 as a data URI, without decoding megabytes only to encode them again."""
    spelled = bytes(image)
    if not spelled.startswith(b'"'):
        raise BadRequest("images must be base64 strings")
    if spelled.startswith(b'"data:'):
        return image
    kind = next((kind for start, kind in _IMAGE_TYPES if spelled.startswith(start, 1)), "jpeg")
    return msgspec.Raw(b'"data:image/' + kind.encode() + b";base64," + spelled[1:])


def _call(name: str, call: _Call) -> dict[str, Any]:
    raw = bytes(call.function.arguments) if given(call.function.arguments) else b"{}"
    # An object becomes the text of that object; what is a text already stays one.
    arguments = call.function.arguments if raw.startswith(b'"') else raw.decode("utf-8", "replace")
    return {"id": name, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _result(message: _Message, open_calls: list[tuple[str, str]]) -> dict[str, Any]:
    """Tie a result to its call: by id, else by name, else to the oldest call without a result."""
    match = next((call for call in open_calls if call[0] == message.tool_call_id), None)
    if match is None and message.tool_call_id is None and open_calls:
        match = next((call for call in open_calls if call[1] == message.tool_name), open_calls[0])
    if match is not None:
        open_calls.remove(match)
    said = {"tool_call_id": message.tool_call_id or (match[0] if match else "call_0")}
    name = message.tool_name or (match[1] if match else "")
    return said | ({"name": name} if name else {})


def _whole_number(name: str, raw: msgspec.Raw) -> int:
    try:
        value = msgspec.json.decode(raw, type=float)
    except msgspec.DecodeError as error:
        raise BadRequest(f'option "{name}" must be of type integer') from error
    return count(value) or 0


def _lost(asked: _Asked | _Embed) -> tuple[Change, ...]:
    options = asked.options or {}
    fields = [f"options.{name}" for name in LOST_OPTIONS if given(options.get(name, ABSENT))]
    fields += [name for name in LOST_FIELDS if name in asked.__struct_fields__ and given(getattr(asked, name))]
    return tuple(Change(field=field, why=_LOST) for field in fields)
