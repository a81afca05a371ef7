"""Go's JSON reader accepts what strict readers refuse, and clients have come to depend on it."""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from herd.errors import BadRequest

T = TypeVar("T")

FOLDED_INSIDE = frozenset({"messages"})
"""Lists whose entries are structs in Ollama too, so that their keys match in any case; `options` is a map there."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_EXPECTED = re.compile(r"Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`(?: - at `\$\.?(?P<field>[^`]*)`)?")
_TRAILING = re.compile(r"trailing characters \(byte (?P<after>\d+)\)")
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
"""How gzip and zstd begin."""
_WORDS = {
    "str": "a string", "int": "a number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "an object", "null": "null",
}  # fmt: skip


def decode(strictly: Callable[[bytes], T], body: bytes) -> T:
    """Decode a body with a strict decoder, and where that fails once more as Go would read it.

    Raises `BadRequest` with a text that says what is wrong, and Ollama's text for a truncated body.
    """
    try:
        return strictly(body)
    except msgspec.ValidationError as error:
        raise BadRequest(explained(error)) from error
    except msgspec.DecodeError as error:
        mended_body = mended(body, truncated="truncated" in str(error))
    except UnicodeDecodeError:
        mended_body = mended(body)
    except RecursionError as error:
        raise BadRequest("exceeded max depth") from error
    return strict(strictly, mended_body)


def decode_folded(strictly: Callable[[bytes], T], body: bytes) -> T:
    """Decode a body whose keys may be in any case. Costs a second look at all of it, so not for the fast path."""
    if any(key != key.lower() for key in fields(body)):
        return strict(strictly, mended(body))
    return decode(strictly, body)


def fields(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of a body in their order, each as the bytes that spell it. Raises `BadRequest`."""
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _, first = first_value(body, truncated="truncated" in str(error))
        return strict(_FIELDS.decode, first)


def strict(strictly: Callable[[bytes], T], body: bytes) -> T:
    """Decode what has been mended already; what fails now is the client's fault."""
    try:
        return strictly(body)
    except msgspec.ValidationError as error:
        raise BadRequest(explained(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"invalid JSON: {error}") from error


def trimmed(body: bytes, error: Exception) -> bytes:
    """Return a large body in which a strict decoder may get further, given what it said: for reading only.

    Takes away what follows the first value, or the escapes of surrogates, of which one may be alone. Raises
    `BadRequest` where there is neither; so it ends, however often it is called.
    """
    if isinstance(error, RecursionError):
        raise BadRequest("exceeded max depth") from error
    trailing = _TRAILING.search(str(error))
    if trailing is not None:
        return body[: int(trailing["after"]) - 1]
    if b"\\ud" in body or b"\\uD" in body:
        return body.replace(b"\\ud", b"\\/d").replace(b"\\uD", b"\\/D")
    _refuse_compressed(body)
    raise BadRequest("unexpected EOF" if "truncated" in str(error) else f"invalid JSON: {error}") from error


def mended(body: bytes, *, truncated: bool = False) -> bytes:
    """Rewrite a body as strict JSON: its first value only, keys in lower case, broken characters replaced.

    For reading only: numbers may be spelled in another way afterwards. `truncated` chooses the text of the complaint.
    """
    value, _ = first_value(body, truncated=truncated)
    return json.dumps(folded(value), ensure_ascii=False).encode("utf-8", "replace")


def first_value(body: bytes, *, truncated: bool = False) -> tuple[Any, bytes]:
    """Return the first JSON value of a body, and the bytes that spell it."""
    text = body.decode("utf-8", "surrogateescape")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, end = _GO.raw_decode(text, start)
    except json.JSONDecodeError as error:
        _refuse_compressed(body)
        if truncated or error.pos >= len(text):
            raise BadRequest("unexpected EOF") from error
        raise BadRequest(f"invalid character {text[error.pos]!r} at position {error.pos}") from error
    except RecursionError as error:
        raise BadRequest("exceeded max depth") from error
    except ValueError as error:  # an integer of thousands of digits, which Python refuses to convert
        raise BadRequest(f"invalid JSON: {error}") from error
    return value, text[start:end].encode("utf-8", "surrogateescape")


def folded(value: Any) -> Any:
    """Return a value whose struct keys are in lower case; keys of maps keep theirs."""
    if not isinstance(value, dict):
        return value
    lowered = {key.lower(): inner for key, inner in cast("dict[str, Any]", value).items()}
    for name in FOLDED_INSIDE & lowered.keys():
        if isinstance(lowered[name], list):
            lowered[name] = [folded(entry) for entry in lowered[name]]
    return lowered


def explained(error: msgspec.ValidationError) -> str:
    """Say which field has the wrong type, in words of JSON instead of Python."""
    found = _EXPECTED.match(str(error))
    if found is None:
        return str(error)
    want = [_WORDS.get(word, word) for word in found["want"].split(" | ") if word != "null"]
    got = _WORDS.get(found["got"], found["got"])
    return f"{found['field'] or 'the body'} must be {' or '.join(want)}, not {got}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _refuse_compressed(body: bytes) -> None:
    if body.startswith(_COMPRESSED):
        raise BadRequest("the request body is compressed; send it as plain JSON, without Content-Encoding")


_GO = json.JSONDecoder(parse_constant=_refuse)
