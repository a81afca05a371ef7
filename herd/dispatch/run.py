"""One request and its client: what the client is told comes from the same record that the log has."""

from typing import Protocol

import msgspec

from events.types import Outcome, RequestReceived
from herd.core import Core
from herd.dispatch.record import Record
from herd.dispatch.relay import Relay
from herd.errors import HerdError, NodeAnswered, Unavailable, UpstreamError
from herd.wire import failure
from herd.wire.dialect import Ending
from herd.wire.request import Parsed

Headers = list[tuple[bytes, bytes]]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks, as it arrived. Every attempt builds its own body from here."""

    path: str
    parsed: Parsed
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """The client's headers that a node may see."""
    client: str = ""
    """The client's address."""
    tags: tuple[str, ...] = ()


class ClientGone(Exception):
    """There is nobody left to answer: the client hung up, or stopped reading."""


class Client(Protocol):
    """The client's end of a request. When it hangs up, the task that serves it is cancelled."""

    @property
    def gone(self) -> bool:
        """Whether the client has hung up."""
        ...

    @property
    def behind(self) -> bool:
        """Whether more has been sent to the client than it takes, so that the next piece has to wait."""
        ...

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        """Take the status and the headers, which leave with the first piece of the body. `length` is the body's."""
        ...

    async def send(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body; the last one has `more` false. Raises `ClientGone`."""
        ...


class Run(Record):
    """One request on its way through the router, with the client that waits for it."""

    def __init__(self, core: Core, job: Job, client: Client) -> None:
        parsed = job.parsed
        received = RequestReceived(
            request=core.new_id(),
            kind=parsed.kind,
            dialect=parsed.dialect,
            path=job.path,
            model=parsed.model,
            asked=parsed.asked,
            streaming=parsed.streaming,
            client=job.client,
            tokens_estimated=parsed.tokens_estimated,
            needs=parsed.needs,
            num_ctx=parsed.num_ctx,
            tokens_max=parsed.tokens_max,
            fallbacks=parsed.fallbacks,
            tags=job.tags,
            body_bytes=len(job.body),
        )
        super().__init__(core, received)
        self.job = job
        self.client = client
        self.last_error: UpstreamError | None = None
        self.wait_until_s: float | None = None
        """When waiting ends, on the loop's clock; None as long as it has not waited."""
        self.started = False
        """Whether the client has been given a status."""
        self.relay: Relay | None = None
        """Through which the answer comes, once it streams."""

    def let_down(self, node: str, error: UpstreamError, *, retryable: bool) -> None:
        """A node failed this request before the first byte."""
        self.last_error = error
        status = error.status if isinstance(error, NodeAnswered) else None
        self.failed(node, error.cause, status=status, message=failure.message(error), retryable=retryable)

    def headers(self, content_type: bytes) -> Headers:
        """Return the headers of an answer; they tell what the log tells, because they come from the same event."""
        headers = [(b"content-type", content_type), (b"x-request-id", self.request.encode())]
        if self.chosen is not None and self.chosen.node is not None:
            headers += [
                (b"x-fleet-node", self.chosen.node.encode("latin-1", "replace")),
                (b"x-fleet-score", b"%d" % int(self.chosen.score)),
                (b"x-fleet-retries", b"%d" % (self.chosen.attempt - 1)),
            ]
        return headers

    def start(self, content_type: bytes, length: int | None = None) -> None:
        """Begin an answer. `length` is its body's in bytes, where that is known."""
        self.started = True
        self.client.start(200, self.headers(content_type), length)

    async def refuse(self, error: HerdError) -> None:
        """End with an error: as a status before the first byte, inside the stream after it."""
        text = failure.message(error)
        if self.started:
            if self.relay is not None and not self.finished:
                await self._break_off(self.relay, error, text)
            return
        reply = failure.body(self.job.parsed.dialect, error)
        self.finish(error.outcome, status=reply.status, error=text)
        headers = self.headers(reply.content_type.encode("latin-1", "replace"))
        if isinstance(error, Unavailable):
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        self.started = True
        self.client.start(reply.status, headers, len(reply.body))
        await self.client.send(reply.body, more=False)

    async def _break_off(self, relay: Relay, error: HerdError, text: str) -> None:
        outcome = "abandoned" if error.outcome == "abandoned" else "failed"
        self.finish(outcome, relay.ending(), status=200, error=text, answer_bytes=relay.answer_bytes)
        await self.client.send(relay.broken(text), more=False)


def outcome_of(ending: Ending) -> Outcome:
    """Return how an answer that arrived to its end is to be counted."""
    if ending.error:
        return "failed"
    if not ending.finished:
        return "incomplete"
    return "no_output" if ending.empty else "completed"
