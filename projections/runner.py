"""A view is only as good as its way back: kept as a snapshot, built again at start, and proved against the log."""

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from events.recorded import Recorded
from events.seams import Seam, Seams
from events.sqlite import Reader, open_readonly
from events.sqlite.database import connect_anywhere
from events.store import EventStore
from events.types import LogInterrupted, RequestFinished, RouterStarted
from projections.tables import Row, reached, stored, to_row
from projections.traces import Trace, Traces, fold
from projections.view import FOLDED, VIEW, View, decode, encode, plain

#: A snapshot is due after this many events …
SNAPSHOT_EVENTS = 10_000
#: … or this long after the one before, if anything happened since.
SNAPSHOT_INTERVAL_NS = 60_000_000_000
#: A view that knows more than the log, because events were lost, is kept under this name. No start begins with it.
AFTER_LOSS = f"{VIEW.name}.after-loss"
#: Differences that a verification tells in full; the rest it only counts.
DIFFERENCES_MAX = 10


def restore(store: EventStore) -> View:
    """Return the view as of the end of the log: the newest usable snapshot, and what happened since. Blocks on I/O."""
    head = store.state.head
    view = _snapshot(store, head) or VIEW.initial()
    for recorded in store.read(view.seq, until=head, types=FOLDED):
        view = VIEW.apply(view, recorded)
    return view.at(head)


def _snapshot(store: EventStore, head: int) -> View | None:
    found = store.load_snapshot(VIEW.name, VIEW.version)
    if found is None or found[0] > head:  # a snapshot of events that a crash took away
        return None
    if _is_tainted(store, found[0]):
        return None
    try:
        return decode(found[1])
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
    ):  # written by a release whose view had another shape: only a cache
        return None


def _is_tainted(store: EventStore, seq: int) -> bool:
    """Whether the run that made a snapshot at `seq` had lost events: the view knew them, and the log does not."""
    while seq > 0:  # in pieces, for the types have no index: what lies before this run need not be searched
        after = max(seq - SNAPSHOT_EVENTS, 0)
        for newest in store.read(after, until=seq, types=(RouterStarted, LogInterrupted), backwards=True):
            return isinstance(newest.event, LogInterrupted)
        seq = after
    return False


def save(store: EventStore, view: View) -> None:
    """Keep a snapshot of the view. Returns at once.

    After this process has lost events its view is not what the log says, so nothing is kept: the next start folds from
    the last snapshot before the loss, and finds requests whose ending was lost still open.
    """
    if store.state.lost:
        return
    store.save_snapshot(VIEW.name, VIEW.version, view.seq, encode(view))


def save_after_loss(store: EventStore, view: View) -> None:
    """Keep the view with which a router goes on after a loss: its later decisions can be asked again from it alone."""
    store.save_snapshot(AFTER_LOSS, VIEW.version, view.seq, encode(view))


def after_losses(reader: Reader) -> dict[int, View]:
    """Return the views with which routers went on after losses, by position: the newest few. Blocks on I/O."""
    found: dict[int, View] = {}
    for seq, state in reader.snapshots(AFTER_LOSS, VIEW.version):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # as in `_snapshot`
            found[seq] = decode(state)
    return found


class Snapshotter:
    """Says when to save, from positions and times alone."""

    def __init__(self, *, seq: int, at: int) -> None:
        """Begin with a view restored at position `seq` and time `at`, nanoseconds since the epoch."""
        self._seq = seq
        self._at = at

    def due(self, *, seq: int, at: int) -> bool:
        """Whether to save a view of this position now. A yes begins the next interval."""
        events = seq - self._seq
        if events < SNAPSHOT_EVENTS and not (events and at - self._at >= SNAPSHOT_INTERVAL_NS):
            return False
        self._seq, self._at = seq, at
        return True


class Losses:
    """Says when events have ceased to be lost, from what the store says of itself."""

    def __init__(self) -> None:
        self._lost = 0
        self._awaited = False

    def over(self, *, lost: int, head: int, seq: int) -> bool:
        """Whether a loss has ended since this was asked before. `seq` is the position of the view."""
        if lost != self._lost or seq > head:  # while events are lost, the view is at a position that no event has yet
            self._lost, self._awaited = lost, True
        if not self._awaited or seq > head:
            return False
        self._awaited = False
        return True


def abandoned(view: View) -> list[RequestFinished]:
    """Return the endings of all requests that a stopped router left open, oldest first."""
    still_open = sorted(view.fleet.requests.items(), key=lambda item: item[1].received_seq)
    return [
        RequestFinished(
            request=name,
            outcome="abandoned",
            node=request.node,
            model=request.model,
            attempts=request.attempt,
            error="the router stopped before the request ended",
        )
        for name, request in still_open
    ]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not what the log says."""

    part: Literal["log", "snapshot", "live", "traces"]
    where: str
    """A position, a path into the view, or a row and column."""
    expected: str
    found: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild from the log found."""

    events: int
    """Events read."""
    seq: int
    """Position of the last of them."""
    requests_open: int
    rows: int
    """Rows of `request_traces` that the log makes."""
    snapshot_seq: int | None
    """Position of the snapshot that was compared; None if there was none."""
    live_seq: int | None
    """Position of the live view that was compared; None if there was none."""
    traces_seq: int | None
    """Position that `request_traces` had reached; None if it was not compared."""
    seams: tuple[Seam, ...]
    """The first places at which events are missing, because they were lost before they were stored."""
    lost: int
    """Events missing at all of them."""
    not_comparable: tuple[str, ...]
    """What could not be compared, because it was kept by a router after it had lost events, in words."""
    differences_found: int
    differences: tuple[Difference, ...]
    """The first of them."""

    @property
    def ok(self) -> bool:
        """Whether everything that can be compared is what the log says."""
        return self.differences_found == 0


def verify(
    log: Iterable[Recorded],
    *,
    snapshot: tuple[int, bytes] | None = None,
    live: View | None = None,
    traces: Iterable[Row] | None = None,
    traces_seq: int | None = None,
) -> Verification:
    """Build every view anew from the whole log (from position 1 on), and compare what was kept. Blocks on I/O.

    `snapshot` and `live` are compared at their own positions, `traces` (`tables.stored`) at `traces_seq`
    (`tables.reached`), by default the end of the log: it may go on growing meanwhile, if table and position are read in
    one transaction.

    A snapshot or live view that a router made after it had lost events is not comparable, and said to be so. Its table
    always is: that is made from what is stored.
    """
    checks, seams = _Checks(), Seams()
    not_comparable: list[str] = []

    def compare(part: Literal["snapshot", "live"], found: View | None) -> None:
        if found is None or found.seq != seq:
            return
        if seams.open is None:
            checks.same(part, view, found)
        else:
            not_comparable.append(f"the {part} view at position {seq} is not comparable: {seams.open.sentence}")

    view, seq, events = VIEW.initial(), 0, 0
    kept = _decoded(snapshot, checks)
    rebuilt = _Table(traces, traces_seq)
    for recorded in log:
        if recorded.seq != seq + 1:
            checks.found("log", f"after {seq}", str(seq + 1), str(recorded.seq))
        seq, events = recorded.seq, events + 1
        view = VIEW.apply(view, recorded)
        seams.follow(recorded)
        rebuilt.follow(recorded, checks)
        compare("snapshot", kept)
        compare("live", live)
    rebuilt.close(checks)
    if kept is not None and kept.seq > seq:
        checks.found("snapshot", "position", f"at most {seq}", str(kept.seq))
    if live is not None and live.seq > seq:
        checks.found("live", "position", f"at most {seq}", str(live.seq))
    return Verification(
        events=events,
        seq=seq,
        requests_open=len(view.fleet.requests),
        rows=rebuilt.rows,
        snapshot_seq=kept.seq if kept else None,
        live_seq=live.seq if live else None,
        traces_seq=rebuilt.seq,
        seams=tuple(seams.first),
        lost=seams.lost,
        not_comparable=tuple(not_comparable),
        differences_found=checks.count,
        differences=tuple(checks.first),
    )


def verify_file(path: Path) -> Verification:
    """Verify a database, whether a router runs on it or not. Blocks on I/O.

    Raises `StoreUnavailable` where there is no readable log, `ForeignDatabase` where the file is another program's.
    """
    with closing(open_readonly(path)) as reader, closing(connect_anywhere(path)) as connection:
        connection.execute("BEGIN")  # table and position as of one moment, however long the comparison takes
        return verify(
            reader.read(),
            snapshot=reader.load_snapshot(VIEW.name, VIEW.version),
            traces_seq=reached(connection),
            traces=stored(connection),
        )


class _Checks:
    """Counts differences and keeps the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Difference] = []

    def found(self, part: Literal["log", "snapshot", "live", "traces"], where: str, expected: str, found: str) -> None:
        self.count += 1
        if len(self.first) < DIFFERENCES_MAX:
            self.first.append(Difference(part=part, where=where, expected=expected, found=found))

    def same(self, part: Literal["snapshot", "live"], expected: View, found: View) -> None:
        if expected == found:
            return
        for where, one, other in _differing("", _builtins(expected), _builtins(found)):
            self.found(part, where, repr(one), repr(other))


class _Table:
    """Makes the rows anew and holds each against the one that was stored."""

    def __init__(self, stored: Iterable[Row] | None, until: int | None) -> None:
        self.rows = 0
        self._state = Traces()
        self._until = until
        self._stored = None if stored is None else iter(stored)

    @property
    def seq(self) -> int | None:
        return None if self._stored is None else self._state.seq

    def follow(self, recorded: Recorded, checks: _Checks) -> None:
        if self._until is not None and recorded.seq > self._until:
            return
        self._state, finals = fold(self._state, recorded)
        for final in finals:
            self.rows += 1
            if self._stored is not None:
                self._compare(to_row(final), next(self._stored, None), checks)

    def close(self, checks: _Checks) -> None:
        if self._until is not None and self._state.seq < self._until:
            checks.found("traces", "position", f"at most {self._state.seq}", str(self._until))
        for surplus in self._stored or ():
            self._compare(None, surplus, checks)

    def _compare(self, expected: Row | None, found: Row | None, checks: _Checks) -> None:
        if expected == found:
            return
        request, status = (expected or found or ("", ""))[0], (expected or found or ("",) * 7)[6]
        where = f"request {request}, {status}"
        if expected is None or found is None:
            checks.found("traces", where, "a row" if expected else "no row", "a row" if found else "no row")
            return
        for column, one, other in zip(Trace.__struct_fields__, expected, found, strict=True):
            if one != other:
                checks.found("traces", f"{where}, {column}", repr(one), repr(other))


def _decoded(snapshot: tuple[int, bytes] | None, checks: _Checks) -> View | None:
    if snapshot is None:
        return None
    seq, state = snapshot
    try:
        view = decode(state)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        checks.found("snapshot", f"at {seq}", "a view", str(error))
        return None
    if view.seq != seq:
        checks.found("snapshot", "position", str(seq), str(view.seq))
    return view


def _builtins(view: View) -> Any:
    return msgspec.to_builtins(view, enc_hook=plain)


def _differing(path: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the leaves in which two trees of plain values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        expected, found = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        for key in sorted(expected | found):
            yield from _differing(f"{path}.{key}" if path else key, expected.get(key), found.get(key))
    elif one != other:
        yield path, one, other
