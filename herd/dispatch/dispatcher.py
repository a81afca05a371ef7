"""One request from its arrival to its single ending: choose, wait, send, try elsewhere, pass the answer on.

Nothing reaches the client before the first byte of an answer exists, so until then a failed node costs the client only
time: another node is asked, with a body built anew from what the client sent. After the first byte there is no second
chance; a node that dies then ends in an error inside the stream.
"""

import asyncio
import logging
from contextlib import suppress
from functools import partial

from events.types import Eliminated, RequestDispatched, RouteChosen
from herd.core import Core
from herd.dispatch.lanes import Lanes, Turn
from herd.dispatch.relay import Relay, relay_for
from herd.dispatch.run import Client, ClientGone, Job, Run, outcome_of
from herd.dispatch.upstream import Answer, Upstream
from herd.errors import (
    BadRequest,
    HerdError,
    NodeAnswered,
    NodeUnreachable,
    NoNodeAvailable,
    QueueTimeout,
    Stopping,
    UpstreamError,
)
from herd.routing.admission import refuse_model
from herd.routing.policy import Ask
from herd.wire import failure
from herd.wire.dialect import Ending
from herd.wire.ending import is_answer
from herd.wire.request import Parsed
from projections.fleet import Fleet, Node

logger = logging.getLogger(__name__)

#: An answer that is not streamed is held until it is whole, so that a broken one can still become a clean error.
WHOLE_ANSWER_MAX = 256 * 1024 * 1024
#: A node's error body is passed on up to this size.
ERROR_BODY_MAX = 1024 * 1024
#: A router that stops gives each client so long to take its last words.
FAREWELL_S = 1.0
#: Up to here a last piece surely leaves at once, if those before it have.
LAST_PIECE_MAX_BYTES = 64 * 1024


class Dispatcher:
    """Serves requests. One per router; lives on the event loop's thread."""

    def __init__(
        self, core: Core, upstream: Upstream, *, retries_max: int, waiting_max: int, wait_max_s: float
    ) -> None:
        self._core = core
        self._upstream = upstream
        self._attempts_max = retries_max + 1
        self._wait_max_s = wait_max_s
        self.lanes = Lanes(core, waiting_max=waiting_max)

    def new_id(self) -> str:
        """Return an id for a request that ends before it is one."""
        return self._core.new_id()

    async def serve(self, job: Job, client: Client, refusal: HerdError | None = None) -> None:
        """Answer one request, with `refusal` if there is one. It ends with exactly one `request.finished`.

        Raises nothing but `CancelledError`, which is how a client that hangs up (or a router that stops) ends it early.
        """
        run = Run(self._core, job, client)
        try:
            if refusal is not None:
                await _refuse(run, refusal)
            else:
                await self._answer(run)
        except asyncio.CancelledError:
            if not client.gone:
                await _say_goodbye(run)
            run.finish("cancelled", status=None, error="the client hung up")
            raise
        except ClientGone:
            run.finish("cancelled", status=None, error="the client stopped reading")
        except HerdError as error:
            await _refuse(run, error)
        except Exception as error:
            logger.exception("a bug failed a request", extra={"request_id": run.request})
            await _refuse(run, HerdError(f"internal error ({type(error).__name__}); see the router's log"))
        finally:
            run.last_error = None  # its traceback holds the run, and with it the body

    async def _answer(self, run: Run) -> None:
        while True:
            recorded, chosen = run.choose()
            if chosen.node is None:
                raise run.last_error or nobody(chosen, run, self._core.view.fleet)
            node = self._core.view.fleet.nodes[chosen.node]
            relay = relay_for(run.job.parsed, run.job.body, node, now=self._core.clock.now)
            if relay.local is not None:
                run.finish("completed", relay.ending(), status=200, answer_bytes=len(relay.local))
                run.start(relay.content_type(b""), len(relay.local))
                await run.client.send(relay.local, more=False)
                return
            if not await self._take_slot(run, chosen, relay, recorded.id):
                continue
            try:
                await self._ask(run, relay, node)
            except UpstreamError as error:
                if run.started:
                    raise
                retryable = may_ask_another(error, run.job.parsed)
                run.let_down(chosen.node, error, retryable=retryable)
                if not retryable or run.attempt >= self._attempts_max:
                    raise
                run.attempt += 1
            else:
                return

    async def _take_slot(self, run: Run, chosen: RouteChosen, relay: Relay, cause: str) -> bool:
        """Return True when the request has a slot on its node; False when that node went away while it waited.

        The time that a request may wait is counted over all the lines in which it stood.
        """
        assert chosen.node is not None
        dispatched = RequestDispatched(
            request=run.request,
            attempt=run.attempt,
            node=chosen.node,
            model=chosen.model,
            sent_model=relay.sent_model,
            changes=relay.changes,
        )
        if self.lanes.start(dispatched, cause):
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Turn] = loop.create_future()
        waiter = self.lanes.wait(dispatched, partial(_call, turn), cause)
        if run.wait_until_s is None:
            run.wait_until_s = loop.time() + self._wait_max_s
        try:
            async with asyncio.timeout_at(run.wait_until_s):
                return await turn == "go"
        except TimeoutError as error:
            raise QueueTimeout(self._wait_max_s) from error
        finally:
            self.lanes.leave(waiter)

    async def _ask(self, run: Run, relay: Relay, node: Node) -> None:
        try:
            answer = await self._upstream.send(node.url, "POST", relay.path, run.job.headers, relay.body)
        except ValueError as error:
            raise BadRequest(f"a header of this request cannot be passed on: {error}") from error
        try:
            status = answer.status
            if 400 <= status < 600:
                body = await answer.read_all(ERROR_BODY_MAX)
                raise NodeAnswered(status, body, answer.content_type.decode("latin-1"))
            if status != 200:
                # No inference server means it so; following a redirect would let a node send us anywhere.
                raise NodeUnreachable(f"{node.url} answered with status {status}", cause="protocol")
            if not is_answer(answer.content_type, answer.headers):
                what = answer.content_type.decode("latin-1")
                raise NodeUnreachable(f"{node.url} answered with {what}, which is no model's answer", cause="protocol")
            if relay.streams(answer.content_type):
                await self._pass_on(run, relay, answer, node.name)
            else:
                await self._deliver(run, relay, answer, node.name)
        finally:
            answer.abort()

    async def _deliver(self, run: Run, relay: Relay, answer: Answer, node: str) -> None:
        body, ending = relay.whole(await answer.read_all(WHOLE_ANSWER_MAX))
        if ending is None:
            raise NodeUnreachable(f"the answer of node {node} is no JSON object", cause="protocol")
        run.start(relay.content_type(answer.content_type), len(body))
        await _conclude(run, ending, node, len(body), last=body)

    async def _pass_on(self, run: Run, relay: Relay, answer: Answer, node: str) -> None:
        chunk = await answer.read()
        if not chunk:
            raise NodeUnreachable(f"node {node} ended its answer before it began", cause="protocol")
        run.first_token(node)
        client = run.client
        run.relay = relay
        run.start(relay.content_type(answer.content_type))
        try:
            while chunk and not answer.ended:
                out = relay.feed(chunk)
                if out:
                    await client.send(out, more=True)
                chunk = await answer.read()
            last = relay.feed(chunk) + relay.rest()
        except UpstreamError as error:
            raise UpstreamError(f"node {node} broke off its answer: {failure.message(error)}") from error
        await _conclude(run, relay.ending(), node, relay.answer_bytes, last=last)


async def _conclude(run: Run, ending: Ending, node: str, answer_bytes: int, *, last: bytes) -> None:
    """Send the last piece and record the end.

    The client comes first, because it need not wait for our books; but one that is slow to read does not keep the slot
    of a node that is done.
    """
    client = run.client
    if client.behind or len(last) > LAST_PIECE_MAX_BYTES:
        _finish(run, ending, node, answer_bytes)
        await client.send(last, more=False)
    else:
        await client.send(last, more=False)
        try:
            await asyncio.sleep(0)  # now it is sent
        finally:
            _finish(run, ending, node, answer_bytes)


def _finish(run: Run, ending: Ending, node: str, answer_bytes: int) -> None:
    outcome = outcome_of(ending)
    error = ending.error
    if outcome == "incomplete":
        error = f"node {node} ended its answer without saying that it is done"
    run.finish(outcome, ending, status=200, error=error, answer_bytes=answer_bytes)


def _call(waiting: asyncio.Future[Turn], turn: Turn) -> bool:
    if waiting.done():  # its client has just left; it will take itself out of the count of open requests
        return False
    waiting.set_result(turn)
    return True


async def _refuse(run: Run, error: HerdError) -> None:
    try:
        await run.refuse(error)
    except ClientGone:
        run.finish("cancelled", status=None, error="the client stopped reading")


async def _say_goodbye(run: Run) -> None:
    """End a request because the router ends: in the shape of its dialect, if its client still takes it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await _refuse(run, Stopping())


def may_ask_another(error: UpstreamError, parsed: Parsed) -> bool:
    """Return whether another node may do better: not where the client's own request is at fault."""
    if not isinstance(error, NodeAnswered):
        return True
    if error.status == 404:
        return True  # the inventory was stale, or the node lied
    text = failure.message(error)
    if error.status >= 500:
        # Ollama answers two kinds of bad input with 500.
        return not text.startswith(('option "', "invalid format"))
    if "exceeds the available context size" in text:
        return True  # llama.cpp cuts nothing off, where Ollama would, or a node with a longer context need not
    # Ollama reports a runner that crashed over an embedding as 400.
    return parsed.kind == "embed" and text.startswith("do embedding request")


def nobody(chosen: RouteChosen, run: Run, fleet: Fleet) -> HerdError:
    """Return the error for a request that no node can serve, from the reasons in its decision."""
    parsed = run.job.parsed
    holders = {node.name: node for node in fleet.nodes.values() if node.has(parsed.model)}
    if not holders:
        return failure.model_not_found(parsed.path, parsed.asked)
    ask = Ask.of(run.received)
    unable = [refuse_model(node, ask) for node in holders.values()]
    if unable[0] is not None and all(unable):  # nor could a node that is away
        return incapable(parsed, unable[0], fleet)
    refused = [refusal for refusal in chosen.eliminated if refusal.node in holders]
    reasons = "; ".join(f"{refusal.node}: {refusal.detail or refusal.reason}" for refusal in refused)
    return NoNodeAvailable(
        f"model '{parsed.asked}' cannot be served now ({reasons})",
        hint="See /fleet/status; start or free one of these nodes.",
    )


def incapable(parsed: Parsed, refused: Eliminated, fleet: Fleet) -> BadRequest:
    """Return the error for a model that cannot do what is asked, in Ollama's words."""
    model = fleet.nodes[refused.node].models.get(parsed.model)
    lacking = [need for need in parsed.needs if model is None or need not in model.capabilities]
    if lacking:
        text = f"registry.ollama.ai/library/{parsed.model} does not support {lacking[0]}"
        return BadRequest(text, hint=refused.detail)
    return BadRequest(f'"{parsed.asked}" does not support {parsed.kind}', hint=refused.detail)
