"""Everything that can go wrong, as one tree: each with an HTTP status, and a hint for the operator.

HerdError
├── BadRequest            400  the client's body cannot be understood
├── TooLarge              413  the client's body is larger than the router takes
├── NotFound              404
│   └── ModelNotFound     404  no node, online or not, has the model
├── Unavailable           503  it exists, but not now
│   ├── NoNodeAvailable   503  every node that could serve is away, broken or full
│   ├── QueueFull         503  too many requests wait already
│   ├── QueueTimeout      503  waited for a slot as long as it may
│   ├── Overloaded        503  the router itself is short of memory or descriptors
│   └── Stopping          503  the router stops, and its time to finish is over
├── RouterLoop            508  the request has passed through this router before
├── UpstreamError         502  a node failed us
│   ├── NodeUnreachable   502  refused, reset, or gone
│   ├── NodeTimeout       504  accepted the request and did not answer in time
│   └── NodeAnswered      …    an HTTP error of the node, kept as it was
├── SettingsError              a setting has no sense
└── StartupError               the program cannot start: port taken, directory unusable, another router, foreign file
"""

from http import HTTPStatus
from typing import Literal, Self


class HerdError(Exception):
    """The base of all errors that Herd raises on purpose."""

    status: int = HTTPStatus.INTERNAL_SERVER_ERROR
    outcome: Literal["rejected", "expired", "failed", "abandoned"] = "failed"
    """How a request that ends with this error is counted in the log."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def bare(self) -> Self:
        """Return the error without the places it passed, for whoever keeps it: they hold frames, and those bodies."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class BadRequest(HerdError):
    """The client's request cannot be understood."""

    status = HTTPStatus.BAD_REQUEST
    outcome = "rejected"


class TooLarge(HerdError):
    """The client's body is larger than the router takes."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    outcome = "rejected"

    def __init__(self, limit: int) -> None:
        super().__init__(f"request body too large: the limit is {limit // 1024 // 1024} MiB")


class NotFound(HerdError):
    """What the client asked for does not exist."""

    status = HTTPStatus.NOT_FOUND
    outcome = "rejected"


class ModelNotFound(NotFound):
    """No node, online or not, has the model."""


class Unavailable(HerdError):
    """It exists, but cannot be had now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    outcome = "rejected"
    retry_after_s: int = 2


class NoNodeAvailable(Unavailable):
    """Every node that could serve is away, broken or full."""


class QueueFull(Unavailable):
    """Too many requests wait already. The text is Ollama's own (two spaces included), because clients match on it."""

    def __init__(self) -> None:
        super().__init__(
            "server busy, please try again.  maximum pending requests exceeded",
            hint="Raise FLEET_MAX_QUEUE, add a node, or raise OLLAMA_NUM_PARALLEL on the nodes.",
        )


class QueueTimeout(Unavailable):
    """A request waited for a slot as long as it may."""

    outcome = "expired"

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"no node had a free slot within {waited_s:g} s",
            hint="Add a node, raise OLLAMA_NUM_PARALLEL on the nodes, or raise FLEET_QUEUE_TIMEOUT.",
        )


class Overloaded(Unavailable):
    """The router itself has no more memory or descriptors to give; no node is to blame."""


class Stopping(Unavailable):
    """The router stops, and the time that it gives running requests is over."""

    outcome = "abandoned"

    def __init__(self) -> None:
        super().__init__("the router is stopping; try again")


class RouterLoop(HerdError):
    """A request came back to the router that sent it out."""

    status = HTTPStatus.LOOP_DETECTED
    outcome = "rejected"

    def __init__(self) -> None:
        super().__init__(
            "this request has passed through this router before: one of its nodes is the router itself",
            hint="Give that node's agent the address of its Ollama with --ollama-host or FLEET_NODE_OLLAMA_HOST.",
        )


class UpstreamError(HerdError):
    """A node failed us; `cause` is the word that the log records."""

    status = HTTPStatus.BAD_GATEWAY
    cause = "error"


class NodeUnreachable(UpstreamError):
    """The node refused the connection, broke it off, or spoke no HTTP. `cause`: connect, reset or protocol."""

    def __init__(self, message: str, *, cause: str = "connect") -> None:
        super().__init__(message)
        self.cause = cause


class NodeTimeout(UpstreamError):
    """The node accepted the request and did not answer in time."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    cause = "timeout"


class NodeAnswered(UpstreamError):
    """The node answered with an HTTP error before the first byte of an answer; status and body are the node's."""

    cause = "status"

    def __init__(self, status: int, body: bytes, content_type: str) -> None:
        super().__init__(f"the node answered {status}")
        self.status = status
        self.body = body
        self.content_type = content_type


class SettingsError(HerdError):
    """A setting has no sense; the message names it and where it came from."""


class StartupError(HerdError):
    """The program cannot start. The message says why, the hint what to do."""
