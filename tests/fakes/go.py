"""Ollama shows through what Go's standard library does: how it reads JSON, words its errors and writes time."""

import json
import re
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_KINDS: dict[type[Any], str] = {
    bool: "bool",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}
_DYNAMIC: dict[type[Any], str] = {
    bool: "bool",
    int: "float64",
    float: "float64",
    str: "string",
    list: "[]interface {}",
    dict: "map[string]interface {}",
}
_FIELDS: dict[str, tuple[type[Any], str]] = {
    "model": (str, "string"),
    "prompt": (str, "string"),
    "stream": (bool, "bool"),
    "options": (dict, "map[string]interface {}"),
}
_MESSAGES = {"ChatRequest": ("api", "api.Alias"), "ChatCompletionRequest": ("openai", "openai.Message")}
"""Package of the messages in a request, and the type under which Go reads each of them."""


def encode(value: Any) -> bytes:
    """JSON as Go writes it: HTML characters escaped, so that a careless proxy that re-encodes gives itself away."""
    return re.sub(rb"[<>&]", lambda found: b"\\u%04x" % ord(found[0]), msgspec.json.encode(value))


def decode(body: bytes, go_type: str) -> dict[str, Any]:
    """An object as Go reads it: keys in any case (here lowered), the first value only, whatever follows it ignored.

    Raises ValueError with Go's text; for an empty body that is `EOF`.
    """
    text = body.decode("utf-8", "replace").lstrip()
    if not text:
        raise ValueError("EOF")
    try:
        value = cast("object", json.JSONDecoder().raw_decode(text)[0])
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :]
        # Python points at the opening quote of a string that has no end.
        if not rest or error.msg.startswith("Unterminated"):
            raise ValueError("unexpected EOF") from None
        raise ValueError(f"invalid character '{rest[0]}' looking for beginning of value") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"json: cannot unmarshal {_KINDS.get(type(value), 'null')} into Go value of type api.{go_type}"
        )
    fields = {key.lower(): each for key, each in cast("dict[str, Any]", value).items()}
    for name, (kind, shown) in _FIELDS.items():
        _demand(fields.get(name), kind, f"{go_type}.{name}", shown)
    if go_type in _MESSAGES:
        package, element = _MESSAGES[go_type]
        _demand(fields.get("tools"), list, f"{go_type}.tools", "api.Tools" if package == "api" else "[]api.Tool")
        _demand(fields.get("messages"), list, f"{go_type}.messages", f"[]{package}.Message")
        fields["messages"] = [_message(each, f"{go_type}.messages", element) for each in fields.get("messages") or ()]
    return fields


def type_of(value: Any) -> str:
    """The name that Go gives to the type of a value that it was not told the type of."""
    return "<nil>" if value is None else _DYNAMIC[type(value)]


def duration_s(text: str) -> float:
    """Seconds in a Go duration such as `1h30m` or `-1m`. Raises ValueError with Go's text."""
    parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", text)
    if not text or text.lstrip("+-") not in ("0", "".join(number + unit for number, unit in parts)):
        wrong = "missing unit in" if re.fullmatch(r"[+-]?[0-9.]+", text) else "invalid"
        raise ValueError(f'time: {wrong} duration "{text}"')
    return (-1 if text.startswith("-") else 1) * sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def rfc3339(at_ns: int) -> str:
    """Nanoseconds since the epoch as a UTC time with nine decimals."""
    whole, rest = divmod(at_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _message(value: Any, field: str, element: str) -> dict[str, Any]:
    _demand(value, dict, field, element)
    message = {key.lower(): each for key, each in cast("dict[str, Any]", value or {}).items()}
    _demand(message.get("role"), str, f"{field}.role", "string")
    if element == "api.Alias":  # under /v1 a content may also be a list
        _demand(message.get("content"), str, f"{field}.content", "string")
    return message


def _demand(value: Any, kind: type[Any], field: str, shown: str) -> None:
    """Raise ValueError unless the value is of that kind or null, which Go takes for nothing."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"json: cannot unmarshal {_KINDS[type(value)]} into Go struct field {field} of type {shown}")
