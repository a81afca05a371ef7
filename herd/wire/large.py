"""One body of many megabytes must not make everybody wait: beyond some size it is measured instead of read."""

import re
from itertools import islice

import msgspec

from events.types import Kind
from herd.errors import BadRequest
from herd.wire import lenient
from herd.wire.dialect import ABSENT, Size, given

READ_MAX_BYTES = 256 * 1024
"""A body up to this size is read as it is: whatever it holds, that takes a few hundredths of a second at most."""

FIELD_MAX_BYTES = 16 * 1024
"""A field up to this size is kept as it is; all that are looked at together stay below READ_MAX_BYTES."""

OBJECTS_MAX = 20_000
"""Messages and their parts that are looked at one by one; beyond it they are taken for one text."""

UNKNOWN_MAX_BYTES = 1024 * 1024
"""Bytes outside of the fields named here among which those for the router are searched, to be taken out."""

SAMPLE_BYTES = 64 * 1024
"""So much of a long text is looked at to see how many bytes make a character in it."""

VALUES_MAX = 500_000
"""Texts, lists and objects of a body that may all be looked at, as a translation must: half a second's work."""

OPENING_BRACKET = ord("[")

_MEASURED: dict[Kind, tuple[str, ...]] = {
    "chat": ("messages",),
    "generate": ("prompt", "system", "images"),
    "embed": ("input", "prompt"),
}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a large body without reading it."""

    rest: bytes
    """A small body with the same fields, in which a large one is null, or a list of one thing in place of tools."""
    size: Size
    """Of all that is not in the rest."""
    strippable: bool
    """Whether fields can be taken out of it in little time."""


class _Fields(msgspec.Struct, gc=False):
    """All that a route may read, as bytes; what is not here is skipped."""

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    images: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    options: msgspec.Raw = ABSENT
    keep_alive: msgspec.Raw = ABSENT
    metadata: msgspec.Raw = ABSENT
    fallback_models: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = ABSENT
    images: msgspec.Raw = ABSENT


class _Part(msgspec.Struct, gc=False):
    text: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT


_EMPTY = re.compile(rb"\[[ \t\r\n]*\]")
_SHOWN = re.compile(
    rb'"images"[ \t\r\n]*+:[ \t\r\n]*+\[[ \t\r\n]*+[^] \t\r\n]|"image_url"[ \t\r\n]*+:[ \t\r\n]*+[^n \t\r\n]'
)
"""An image in a message, which null and an empty list are not."""
_TEXTS = re.compile(rb'[\[ \t\r\n]*+"')
_VALUES = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]', re.DOTALL)
_FIELDS = msgspec.json.Decoder(_Fields)
_MESSAGES = msgspec.json.Decoder(list[_Message])
_PARTS = msgspec.json.Decoder(list[_Part])


def measure(kind: Kind, body: bytes) -> Measured:
    """Look at a body of any size. Its keys must be in lower case, where Go takes any: folding them would be reading.

    Raises `BadRequest` if it is no JSON object, or has no name of a model.
    """
    fields, clean = _fields(body)
    if not given(fields.model):
        raise BadRequest(
            f"model is required (a body of more than {READ_MAX_BYTES // 1024} KiB must name it in lower case)"
        )
    if _length(fields.model) > FIELD_MAX_BYTES:
        raise BadRequest("invalid model name")
    rest: dict[str, msgspec.Raw] = {}
    known = 0
    sizes: list[Size] = []
    for name in _Fields.__struct_fields__:
        raw: msgspec.Raw = getattr(fields, name)
        length = _length(raw)
        known += length
        if length > FIELD_MAX_BYTES:
            rest[name] = msgspec.Raw(b"[0]" if name == "tools" else b"null")
            if name in _MEASURED[kind]:
                sizes.append(_measured(name, raw, body))
        elif length:
            rest[name] = raw
    return Measured(
        rest=msgspec.json.encode(rest),
        size=Size(
            sum(size.characters for size in sizes),
            sum(size.messages for size in sizes),
            sum(size.images for size in sizes),
        ),
        strippable=clean and len(body) - known <= UNKNOWN_MAX_BYTES,
    )


def has_too_many_values(body: bytes) -> bool:
    """Whether looking at every value of a body would take long. A long text is one value, whatever is in it."""
    if len(body) <= READ_MAX_BYTES or body.count(b'"') // 2 + body.count(b"{") + body.count(b"[") <= VALUES_MAX:
        return False
    return next(islice(_VALUES.finditer(body), VALUES_MAX, None), None) is not None


def _fields(body: bytes) -> tuple[_Fields, bool]:
    """Return the fields, and whether the body is strict JSON; else it is read as Go would."""
    text = body
    while True:
        try:
            return _FIELDS.decode(text), text is body
        except msgspec.ValidationError as error:
            raise BadRequest(lenient.explained(error)) from error
        except (msgspec.DecodeError, RecursionError) as error:
            text = lenient.trimmed(text, error)


def _measured(name: str, raw: msgspec.Raw, body: bytes) -> Size:
    if name == "messages":
        return _messages(raw, body)
    return Size(0, 0, _images(raw)) if name == "images" else _texts(raw)


def _messages(raw: msgspec.Raw, body: bytes) -> Size:
    if _count(body, b"{") > OBJECTS_MAX:
        # So many braces are a novel's worth of code, or an attack. No text can spell a key: its quotes are escaped.
        return Size(_characters(raw), 0, sum(1 for _ in islice(_SHOWN.finditer(body), OBJECTS_MAX)))
    try:
        messages = _MESSAGES.decode(raw)
        written = images = 0
        for message in messages:
            content = memoryview(message.content)
            if content.nbytes and content[0] == OPENING_BRACKET:
                for part in _PARTS.decode(content):
                    written += _length(part.text)
                    images += given(part.image_url)
            else:
                written += content.nbytes
            if message.images is not ABSENT:
                images += _images(message.images)
    except msgspec.DecodeError:
        return Size(_characters(raw), 0)  # something else than messages; the node has its own words for it
    return Size(written * _characters(raw) // _length(raw), len(messages), images)


def _images(raw: msgspec.Raw) -> int:
    """Return how many images a list holds; base64 has no commas."""
    return _count(bytes(raw), b",") + 1 if _start(raw) == b"[" and not _EMPTY.fullmatch(raw) else 0


def _texts(raw: msgspec.Raw) -> Size:
    """Measure a text, a list of texts, or lists of token numbers, each of which stands for about four characters."""
    if _start(raw) == b'"':
        return Size(_characters(raw), 1)
    spelled = bytes(raw)
    if _TEXTS.match(spelled):
        return Size(_characters(raw), spelled.count(b'",') + 1)
    return Size(4 * (spelled.count(b",") + 1), spelled.count(b"["))


def _characters(raw: msgspec.Raw) -> int:
    """Return about how many characters a text has, given the JSON that spells it."""
    sample = bytes(memoryview(raw)[:SAMPLE_BYTES])
    # An escape is a backslash and one more byte, or five.
    seen = len(sample.decode("utf-8", "replace")) - sample.count(b"\\") - 4 * sample.count(b"\\u")
    return max(0, _length(raw) * seen // max(1, len(sample)) - 2)


def _count(text: bytes, sign: bytes) -> int:
    """Count a sign that is rare, up to one more than OBJECTS_MAX. `bytes.count` looks at each byte, `find` at many."""
    found, at = 0, text.find(sign)
    while at >= 0 and found <= OBJECTS_MAX:
        found += 1
        at = text.find(sign, at + 1)
    return found


def _start(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _length(raw: msgspec.Raw) -> int:
    return memoryview(raw).nbytes
