"""Everything a decision may look at, folded to one position: the live views as one value."""

from typing import Any, get_args

import msgspec
from immutables import Map
from msgspec.structs import replace

from events.recorded import Recorded
from projections import fleet, latency
from projections.fleet import FLEET, Fleet
from projections.latency import LATENCY, Latency
from projections.projection import Projection


class View(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fleet and what is known of its speed."""

    fleet: Fleet = Fleet()
    latency: Latency = Latency()

    @property
    def seq(self) -> int:
        """Position of the last event folded."""
        return self.fleet.seq

    def at(self, seq: int) -> "View":
        """Return the same view at a later position, for when nothing in between concerned it."""
        return View(fleet=replace(self.fleet, seq=seq), latency=replace(self.latency, seq=seq))


def apply(view: View, recorded: Recorded) -> View:
    """Fold one event into every part of the view."""
    return View(fleet=fleet.apply(view.fleet, recorded), latency=latency.apply(view.latency, recorded))


VIEW = Projection(name="view", version=FLEET.version * 1000 + LATENCY.version, state=View, initial=View, apply=apply)

#: The events that change a view. A rebuild reads only these: decisions, the bulk of the log, need not be decoded.
FOLDED = tuple(sorted(fleet.FOLDED | latency.FOLDED, key=lambda kind: kind.__name__))


def encode(view: View) -> bytes:
    """Return the view as MessagePack."""
    return _encoder.encode(view)


def decode(state: bytes) -> View:
    """Return the view that `encode` was given. Raises `msgspec.MsgspecError` where the bytes are none."""
    return _decoder.decode(state)


def plain(value: Any) -> Any:
    """Return an immutable map as a dict: the `enc_hook` for whoever encodes a view or a part of one."""
    if isinstance(value, Map):
        return dict(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # any map will do
    raise NotImplementedError(f"a view holds no {type(value).__name__}")


def _map(kind: Any, value: Any) -> Any:
    key, item = get_args(kind)
    return Map(msgspec.convert(value, dict[key, item]))


_encoder = msgspec.msgpack.Encoder(enc_hook=plain)
_decoder = msgspec.msgpack.Decoder(View, dec_hook=_map)
