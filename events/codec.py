"""A log is read by releases that had not been written when its events were: tags, versions and bytes meet only here."""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, cast, get_args

import msgspec
import msgspec.inspect

from events.store import StoreError, UnknownEvent
from events.types import Event, RouteChosen

#: How a payload is written; the numbers stand in every stored row and are permanent.
JSON = 0
MESSAGEPACK = 1

#: Events that are mostly floats: formatting those as text costs five times what packing them does.
PACKED: tuple[type[Event], ...] = (RouteChosen,)

#: Turns a payload of one version into the next: builtins in, builtins out, pure.
Upcast = Callable[[dict[str, Any]], dict[str, Any]]

#: One line for each (tag, old version) that was ever written and is no longer current.
UPCASTS: dict[tuple[str, int], Upcast] = {}

_SPELLINGS = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}


class Codec:
    """Event to bytes and back, for one vocabulary of events and the upcasts that lead to it."""

    def __init__(self, events: Any = Event, upcasts: Mapping[tuple[str, int], Upcast] = UPCASTS) -> None:
        self.classes: dict[str, type[Event]] = {tag(cls): cls for cls in get_args(events) or (events,)}
        self._upcasts = upcasts
        self._encoder = msgspec.json.Encoder()
        self._packer = msgspec.msgpack.Encoder()
        self._decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(events)
        self._floats: dict[type[Event], bool] = {}
        self._unpacker: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(events)
        for name, cls in self.classes.items():
            missing = [version for version in range(1, cls.schema) if (name, version) not in upcasts]
            assert not missing, f"no upcast for {name} version {missing}"

    def encode(self, event: Event) -> tuple[int, bytearray]:
        """Return (JSON or MESSAGEPACK, payload).

        Raises TypeError, ValueError or OverflowError for what neither can say. The payload is a bytearray because
        SQLite's Python drivers bind that ten times faster than bytes.
        """
        cls = event.__class__
        if cls in PACKED:
            return MESSAGEPACK, bytearray(self._packer.encode(event))
        payload = self._encoder.encode(event)
        floats = self._floats.get(cls)
        if floats is None:
            floats = self._floats[cls] = _may_hold_floats(cls)
        # JSON has no word for infinity and NaN, and null would be read back as something else or not at all.
        if floats and b"null" in payload and not _finite(msgspec.to_builtins(event)):
            return MESSAGEPACK, bytearray(self._packer.encode(event))
        return JSON, bytearray(payload)

    def decode(self, payload: bytes | bytearray | msgspec.Raw, codec: int = JSON, schema: int = 1) -> Event:
        """Return the event as this release knows it.

        Raises `UnknownEvent` for a tag or a version of a later release, `StoreError` for bytes that are no event.
        """
        try:
            event = (self._decoder if codec == JSON else self._unpacker).decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._decode_slowly(payload, codec, schema, error)
        if event.schema != schema:
            return self._decode_slowly(payload, codec, schema, None)
        return event

    def spell(self, event: Event) -> bytes:
        """Return the event as JSON, always; `decode` understands how infinity and NaN are spelt in it."""
        payload = self._encoder.encode(event)
        if b"null" in payload:
            return self._encoder.encode(_spelt(msgspec.to_builtins(event)))
        return payload

    def _decode_slowly(
        self, payload: bytes | bytearray | msgspec.Raw, codec: int, schema: int, error: Exception | None
    ) -> Event:
        """Read what the fast way could not: an old version, a spelt-out float, or something that has to be refused."""
        try:
            fields: Any = msgspec.json.decode(payload) if codec == JSON else msgspec.msgpack.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as broken:
            raise StoreError(f"an event cannot be decoded: {broken}") from broken
        if not isinstance(fields, dict) or "type" not in fields:
            raise StoreError("an event cannot be decoded: it has no type") from error
        named = cast("dict[str, Any]", fields)
        cls = self.classes.get(named["type"])
        if cls is None:
            raise UnknownEvent(f"the event {named['type']!r} is not known here: a later release of Herd wrote it")
        if schema > cls.schema:
            raise UnknownEvent(
                f"version {schema} of the event {named['type']!r} is not known here, only up to {cls.schema}: "
                "a later release of Herd wrote it"
            )
        if schema < 1:
            raise StoreError(f"an event cannot be decoded: version {schema} of {named['type']!r} never was")
        for version in range(schema, cls.schema):
            named = self._upcasts[named["type"], version](named)
        try:
            return msgspec.convert(named, cls, strict=False)
        except msgspec.ValidationError as invalid:
            raise StoreError(f"an event of type {named['type']!r} cannot be decoded: {invalid}") from invalid


def tag(event: type[Event]) -> str:
    """Return the permanent name under which an event class is stored."""
    name = event.__struct_config__.tag
    assert isinstance(name, str)
    return name


def _may_hold_floats(cls: type[Event]) -> bool:
    """Whether a float can stand anywhere in events of this class; searching those that have none would cost a third."""
    described = repr(msgspec.inspect.type_info(cls))
    return "FloatType" in described or "AnyType" in described


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, dict):
        return all(_finite(each) for each in value.values())  # pyright: ignore[reportUnknownVariableType]  # builtins of any kind
    if isinstance(value, list | tuple):
        return all(_finite(each) for each in value)  # pyright: ignore[reportUnknownVariableType]  # builtins of any kind
    return True


def _spelt(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else _SPELLINGS[str(value)]
    if isinstance(value, dict):
        return {key: _spelt(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType]  # builtins of any kind
    if isinstance(value, list | tuple):
        return [_spelt(each) for each in value]  # pyright: ignore[reportUnknownVariableType]  # builtins of any kind
    return value


CODEC = Codec()
