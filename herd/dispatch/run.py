"""The record of one request: every step becomes an event, and what the client is told comes from those events."""

from typing import Protocol

import msgspec

from events.recorded import Recorded
from events.types import Outcome, RequestAttemptFailed, RequestFinished, RequestFirstToken, RequestReceived, RouteChosen
from herd.core import Core
from herd.errors import HerdError, NodeAnswered, Unavailable, UpstreamError
from herd.wire import failure
from herd.wire.ending import Ending
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


class Client(Protocol):
    """The client's end of a request."""

    @property
    def gone(self) -> bool:
        """Whether the client has hung up."""
        ...

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and the headers."""
        ...

    async def send(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body; the last one has `more` false."""
        ...


class Run:
    """One request on its way through the router."""

    def __init__(self, core: Core, job: Job, client: Client) -> None:
        self.core = core
        self.job = job
        self.client = client
        self.request = core.new_id()
        self.attempt = 1
        self.last_error: UpstreamError | None = None
        self.wait_until_s: float | None = None
        """When waiting ends, on the loop's clock; None as long as it has not waited."""
        self.started = False
        """Whether the client has been sent a status line."""
        self._excluded: tuple[str, ...] = ()
        self._finished = False
        parsed = job.parsed
        self.received = RequestReceived(
            request=self.request,
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
        self._cause = core.record(self.received).id
        self.chosen: RouteChosen | None = None

    def choose(self) -> tuple[Recorded, RouteChosen]:
        """Ask the policy for a node; whoever failed this request before is not asked again."""
        recorded, chosen = self.core.choose(
            self.received, cause=self._cause, attempt=self.attempt, excluded=self._excluded
        )
        if chosen.node is not None or self.chosen is None:
            # A last decision that found nobody does not make the client forget who failed it.
            self.chosen = chosen
        return recorded, chosen

    def first_token(self, node: str) -> None:
        """The first byte of the answer is here."""
        self.core.record(RequestFirstToken(request=self.request, attempt=self.attempt, node=node), cause=self._cause)

    def failed(self, node: str, error: UpstreamError, *, retryable: bool) -> None:
        """A node failed this request before the first byte."""
        self.last_error = error
        self._excluded = (*self._excluded, node)
        self.core.record(
            RequestAttemptFailed(
                request=self.request,
                attempt=self.attempt,
                node=node,
                model=self.received.model,
                cause=error.cause,
                status=error.status if isinstance(error, NodeAnswered) else None,
                message=failure.message(error),
                retryable=retryable,
            ),
            cause=self._cause,
        )

    def finish(
        self,
        outcome: Outcome,
        ending: Ending = Ending(),  # noqa: B008 (frozen)
        *,
        status: int | None,
        error: str = "",
        answer_bytes: int = 0,
    ) -> None:
        """Record the end. The first ending counts; any later one is ignored."""
        if self._finished:
            return
        self._finished = True
        chosen = self.chosen
        self.core.record(
            RequestFinished(
                request=self.request,
                outcome=outcome,
                node=chosen.node if chosen else None,
                model=self.received.model,
                attempts=chosen.attempt if chosen and chosen.node else 0,
                status=status,
                error=error,
                prompt_tokens=ending.prompt_tokens,
                completion_tokens=ending.completion_tokens,
                finish_reason=ending.finish_reason,
                load_ms=ending.load_ms,
                prompt_ms=ending.prompt_ms,
                generate_ms=ending.generate_ms,
                answer_bytes=answer_bytes,
            ),
            cause=self._cause,
        )

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

    async def deliver(self, content_type: bytes, body: bytes) -> None:
        """Send a whole answer."""
        headers = self.headers(content_type)
        headers.append((b"content-length", b"%d" % len(body)))
        self.started = True
        await self.client.start(200, headers)
        await self.client.send(body, more=False)

    async def refuse(self, error: HerdError) -> None:
        """End with an error: as a status before the first byte, inside the stream after it."""
        dialect = self.job.parsed.dialect
        text = failure.message(error)
        if self.started:
            self.finish("failed", status=200, error=text)
            await self.client.send(failure.frame(dialect, text), more=False)
            return
        reply = failure.body(dialect, error)
        self.finish(error.outcome, status=reply.status, error=text)
        headers = self.headers(reply.content_type.encode("latin-1", "replace"))
        headers.append((b"content-length", b"%d" % len(reply.body)))
        if isinstance(error, Unavailable):
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        self.started = True
        await self.client.start(reply.status, headers)
        await self.client.send(reply.body, more=False)


def outcome_of(ending: Ending) -> Outcome:
    """Return how an answer that arrived to its end is to be counted."""
    if ending.error:
        return "failed"
    if not ending.finished:
        return "incomplete"
    return "no_output" if ending.empty else "completed"
