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
_STRING_FIELDS = ("model", "prompt")


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
    for name in _STRING_FIELDS:
        if not isinstance(fields.get(name), str | None):
            kind = _KINDS[type(fields[name])]
            raise ValueError(f"json: cannot unmarshal {kind} into Go struct field {go_type}.{name} of type string")
    return fields


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
