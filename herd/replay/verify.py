"""A log that cannot be re-decided to the same bits proves nothing about another policy, so this is asked first."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from events.recorded import Recorded
from events.seams import Seam, Seams
from events.types import (
    LogInterrupted,
    PolicyPromoted,
    RequestFinished,
    RequestReceived,
    RouteChosen,
    RouterStarted,
)
from herd.errors import SettingsError
from herd.routing.chance import Chance
from herd.routing.decide import decide
from herd.routing.policy import Ask, Policy
from projections.view import VIEW, View

#: A report shows this many differences; all are counted.
DIFFERENCES_MAX = 20

#: What a decision is made of, in the order in which a difference is most telling.
COMPARED = ("node", "score", "signals", "candidates", "eliminated", "runner_up", "margin", "propensity", "model")

_encode = msgspec.json.Encoder().encode


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that came out otherwise than it was recorded."""

    seq: int
    """Position of the decision."""
    request: str
    attempt: int
    what: str
    """The part that differs: `node`, `score`, `eliminated`, `ash: points of queue_depth`, …"""
    recorded: str
    rederived: str

    @property
    def sentence(self) -> str:
        """The difference in words."""
        where = f"request {self.request}, attempt {self.attempt} (position {self.seq})"
        return f"{where}: {self.what} was {self.recorded}, and is now {self.rederived}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of asking again."""

    events: int
    decisions: int
    """All in the log: identical, differing, not checkable, and those of unknown policies."""
    identical: int
    differing: int
    not_checkable: int = 0
    """Made after events were lost, by the same run of the router: they rest on what the log does not hold."""
    resumed: tuple[int, ...] = ()
    """Positions of the router's own snapshots from which decisions after a loss were asked again."""
    seams: tuple[Seam, ...] = ()
    """The first places at which events are missing."""
    lost: int = 0
    """Events missing at all of them."""
    differences: tuple[Difference, ...] = ()
    """The first of those that differ."""
    unknown_policies: dict[str, str] = {}
    """Hashes of policies that could not be asked again, each with the reason."""
    refused: str = ""
    """Why the rest of the log cannot be verified; empty when all of it was read."""

    @property
    def ok(self) -> bool:
        """Whether every decision that can be checked was asked again and came out the same."""
        return not self.refused and self.identical + self.not_checkable == self.decisions


def verify(
    events: Iterable[Recorded],
    policies: Mapping[str, Callable[[dict[str, Any]], Policy]],
    after_losses: Mapping[int, View] | None = None,
) -> Report:
    """Re-ask every recorded decision and compare every bit of what was decided: choice, scores, points and reasons.

    The sentences that explain an elimination to people are not compared. Decisions that a router made after it lost
    events, until its end, are asked again from the view that it kept then (`after_losses`, by position), and where it
    kept none are only counted.

    `events` is a whole log of one writer, in order from position 1. A log that begins later, has a hole, or holds
    decisions made without having seen all that was recorded before them is refused from there on: the view to ask with
    cannot be rebuilt.
    """
    audit = _Audit(policies, after_losses or {})
    for recorded in events:
        if not audit.read(recorded):
            break
    return audit.report()


class _Audit:
    def __init__(
        self, policies: Mapping[str, Callable[[dict[str, Any]], Policy]], after_losses: Mapping[int, View]
    ) -> None:
        self._policies = policies
        self._after_losses = after_losses
        self._view = View()
        """What the log says, with which each run of a router begins."""
        self._own: View | None = None
        """What the router of this run says since a loss; None where it did not lose anything, or kept nothing."""
        self._resumed: list[int] = []
        self._received: dict[str, RequestReceived] = {}
        self._known: dict[str, Policy] = {}
        self._unknown: dict[str, str] = {}
        self._differences: list[Difference] = []
        self._seams = Seams()
        self._events = self._decisions = self._identical = self._differing = self._not_checkable = 0
        self._refused = ""

    def report(self) -> Report:
        return Report(
            events=self._events,
            decisions=self._decisions,
            identical=self._identical,
            differing=self._differing,
            not_checkable=self._not_checkable,
            resumed=tuple(self._resumed),
            seams=tuple(self._seams.first),
            lost=self._seams.lost,
            differences=tuple(self._differences),
            unknown_policies=self._unknown,
            refused=self._refused,
        )

    def read(self, recorded: Recorded) -> bool:
        """Take the next event; False when verifying cannot go on."""
        if recorded.seq != self._view.seq + 1:
            self._refused = _gap(self._view.seq, recorded.seq)
            return False
        self._seams.follow(recorded)
        match recorded.event:
            case RouteChosen() as chosen:
                self._decisions += 1
                view = self._view if self._seams.open is None else self._own
                if view is None or self._rests_on_a_loss(chosen):
                    self._not_checkable += 1
                else:
                    self._refused = self._check(recorded, chosen, view)
            case RequestReceived() as received:
                self._received[received.request] = received
            case RequestFinished() as finished:
                self._received.pop(finished.request, None)
            case PolicyPromoted() as promoted:
                self._promote(promoted)
            case _:
                pass
        self._events += 1
        self._view = VIEW.apply(self._view, recorded)
        self._follow_router(recorded)
        return not self._refused

    def _follow_router(self, recorded: Recorded) -> None:
        """Keep to the router's own view, from where it kept one after a loss to the next loss or its end."""
        if isinstance(recorded.event, LogInterrupted | RouterStarted):
            self._own = None
        elif self._own is not None:
            self._own = VIEW.apply(self._own, recorded)
        kept = self._after_losses.get(recorded.seq)
        if self._seams.open is not None and kept is not None:
            self._own = kept
            self._resumed.append(recorded.seq)

    def _rests_on_a_loss(self, chosen: RouteChosen) -> bool:
        """Whether the request, or the policy, that led to a decision is among what was lost."""
        policy = chosen.policy_hash
        return self._own is not None and (
            chosen.request not in self._received or not (policy in self._known or policy in self._unknown)
        )

    def _promote(self, promoted: PolicyPromoted) -> None:
        wanted = promoted.policy_hash
        factory = self._policies.get(promoted.policy)
        if factory is None:
            self._unknown[wanted] = f"this release has no policy {promoted.policy!r}"
            return
        try:
            policy = factory(promoted.parameters)
        except SettingsError as error:
            self._unknown[wanted] = error.message
            return
        if policy.hash != wanted:
            self._unknown[wanted] = (
                f"{promoted.policy} has changed since: with these parameters it is now {policy.hash}"
            )
            return
        self._known[wanted] = policy
        self._unknown.pop(wanted, None)

    def _check(self, recorded: Recorded, chosen: RouteChosen, view: View) -> str:
        """Re-ask one decision; return why that is impossible, or nothing."""
        if chosen.seen != view.seq:
            return (
                f"the decision at position {recorded.seq} had seen the log up to {chosen.seen} and not "
                f"{view.seq}: more than one router wrote here, and their views cannot be told apart"
            )
        received = self._received.get(chosen.request)
        if received is None:
            return f"the decision at position {recorded.seq} is for request {chosen.request}, which is not open"
        policy = self._known.get(chosen.policy_hash)
        if policy is None:
            self._unknown.setdefault(chosen.policy_hash, f"{chosen.policy} was never promoted in this log")
            return ""
        ask = Ask.of(received, attempt=chosen.attempt, excluded=chosen.excluded)
        decision = decide(view, ask, policy, Chance(chosen.seed), now=recorded.at)
        again = msgspec.structs.replace(
            chosen,
            model=received.model,
            node=decision.node,
            score=decision.score,
            signals=policy.signals,
            candidates=decision.candidates,
            eliminated=decision.eliminated,
            runner_up=decision.runner_up,
            margin=decision.margin,
            propensity=decision.propensity,
        )
        # Compared as written, because 0.0 and -0.0 are equal and not the same bits.
        if _encode(_bare(again)) == _encode(_bare(chosen)):
            self._identical += 1
        else:
            self._differing += 1
            room = DIFFERENCES_MAX - len(self._differences)
            self._differences += differences(recorded.seq, chosen, again)[:room]
        return ""


def _bare(chosen: RouteChosen) -> RouteChosen:
    """Leave out the sentences for people; mending their grammar must not make an old decision look different."""
    eliminated = tuple(msgspec.structs.replace(refused, detail="") for refused in chosen.eliminated)
    return msgspec.structs.replace(chosen, eliminated=eliminated)


def differences(seq: int, recorded: RouteChosen, rederived: RouteChosen) -> list[Difference]:
    """Return what two versions of the decision at position `seq` disagree about, the most telling first."""
    found: list[Difference] = []

    def compare(what: str, was: object, now: object) -> None:
        if _encode(was) != _encode(now):
            found.append(
                Difference(
                    seq=seq,
                    request=recorded.request,
                    attempt=recorded.attempt,
                    what=what,
                    recorded=_words(was),
                    rederived=_words(now),
                )
            )

    for part in COMPARED:
        if part == "candidates":
            _compare_candidates(recorded, rederived, compare)
        elif part == "eliminated":
            _compare_eliminated(recorded, rederived, compare)
        else:
            compare(part, getattr(recorded, part), getattr(rederived, part))
    return found


def _compare_candidates(
    recorded: RouteChosen, rederived: RouteChosen, compare: Callable[[str, object, object], None]
) -> None:
    compare("the order of candidates", [c.node for c in recorded.candidates], [c.node for c in rederived.candidates])
    now = {candidate.node: candidate for candidate in rederived.candidates}
    for was in recorded.candidates:
        candidate = now.get(was.node)
        if candidate is None:
            continue
        if recorded.signals == rederived.signals:
            for signal, a, b in zip(recorded.signals, was.points, candidate.points, strict=True):
                compare(f"{was.node}: points of {signal}", a, b)
        compare(f"{was.node}: total", was.total, candidate.total)
        compare(f"{was.node}: age of the reading (ms)", was.reading_age_ms, candidate.reading_age_ms)


def _compare_eliminated(
    recorded: RouteChosen, rederived: RouteChosen, compare: Callable[[str, object, object], None]
) -> None:
    was = {refused.node: refused.reason for refused in recorded.eliminated}
    now = {refused.node: refused.reason for refused in rederived.eliminated}
    for node in sorted(was.keys() | now.keys()):
        compare(f"{node}: elimination", was.get(node), now.get(node))


def _words(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value) or "none"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]: any element can be shown
    return str(value)


def _gap(seen: int, seq: int) -> str:
    if seen == 0:
        return f"the log begins at position {seq} and not at 1, so what the first decisions saw cannot be rebuilt"
    return f"position {seq} follows position {seen}: events are missing or out of order"
