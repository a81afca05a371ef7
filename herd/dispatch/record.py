"""The record of one request: every step becomes an event, and who may be asked next follows from them.

No client, no socket and no waiting: the router's dispatcher and the simulated one tell the same story through it.
"""

from events.recorded import Recorded
from events.types import Outcome, RequestAttemptFailed, RequestFinished, RequestFirstToken, RequestReceived, RouteChosen
from herd.core import Core
from herd.wire.dialect import Ending

_UNTOLD = Ending()


class Record:
    """One request on its way through the router, as the log has it."""

    def __init__(self, core: Core, received: RequestReceived) -> None:
        self.received = received
        self.request = received.request
        self.attempt = 1
        self.chosen: RouteChosen | None = None
        """The newest decision that found a node, or the first one."""
        self.finished = False
        self._core = core
        self._excluded: tuple[str, ...] = ()
        self._cause = core.record(received).id

    def choose(self) -> tuple[Recorded, RouteChosen]:
        """Ask the policy for a node; whoever failed this request before is not asked again."""
        recorded, chosen = self._core.choose(
            self.received, cause=self._cause, attempt=self.attempt, excluded=self._excluded
        )
        if chosen.node is not None or self.chosen is None:
            # A last decision that found nobody does not make the client forget who failed it.
            self.chosen = chosen
        return recorded, chosen

    def first_token(self, node: str) -> None:
        """The first byte of the answer is here."""
        self._core.record(RequestFirstToken(request=self.request, attempt=self.attempt, node=node), cause=self._cause)

    def failed(self, node: str, cause: str, *, status: int | None, message: str, retryable: bool) -> None:
        """A node failed this request before the first byte. `retryable`: another node may do better."""
        self._excluded = (*self._excluded, node)
        self._core.record(
            RequestAttemptFailed(
                request=self.request,
                attempt=self.attempt,
                node=node,
                model=self.received.model,
                cause=cause,
                status=status,
                message=message,
                retryable=retryable,
            ),
            cause=self._cause,
        )

    def finish(
        self,
        outcome: Outcome,
        ending: Ending = _UNTOLD,
        *,
        status: int | None,
        error: str = "",
        answer_bytes: int = 0,
    ) -> None:
        """Record the end. The first ending counts; any later one is ignored."""
        if self.finished:
            return
        self.finished = True
        chosen = self.chosen
        self._core.record(
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
