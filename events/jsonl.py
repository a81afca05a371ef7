"""A log that leaves the database must stay readable to people and to any program: one JSON object a line."""

import msgspec

from events.codec import CODEC, Codec
from events.recorded import Recorded
from events.store import StoreError


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope as it is written, its event last because that is the long part."""

    seq: int
    id: str
    at: int
    writer: str
    writer_seq: int
    cause: str | None = None
    schema: int = 1
    event: msgspec.Raw


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Line)


def dump(recorded: Recorded, codec: Codec = CODEC) -> bytes:
    """Return one line, without its newline. Floats keep every bit."""
    return _encoder.encode(
        _Line(
            seq=recorded.seq,
            id=recorded.id,
            at=recorded.at,
            writer=recorded.writer,
            writer_seq=recorded.writer_seq,
            cause=recorded.cause,
            # Not `recorded.schema`: the event was brought up to date when it was read, and is written as it is now.
            schema=recorded.event.schema,
            event=msgspec.Raw(codec.spell(recorded.event)),
        )
    )


def load(line: bytes | str, codec: Codec = CODEC) -> Recorded:
    """Return what `dump` wrote, by this release or an earlier one.

    Raises `UnknownEvent` for what a later release wrote, `StoreError` for a line that is no event.
    """
    try:
        parsed = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"not a line of an event log: {error}") from error
    return Recorded(
        seq=parsed.seq,
        id=parsed.id,
        at=parsed.at,
        writer=parsed.writer,
        writer_seq=parsed.writer_seq,
        cause=parsed.cause,
        schema=parsed.schema,
        event=codec.decode(parsed.event, schema=parsed.schema),
    )
