"""A client understands an error only in the shape of its own API family, and some match on Ollama's very words."""

import re
from http import HTTPStatus

import msgspec

from events.types import Dialect as DialectName
from herd.errors import BadRequest, HerdError, ModelNotFound, NodeAnswered
from herd.wire import DIALECTS
from herd.wire.dialect import excerpt

_PART = r"\w[\w.-]{0,79}"
_NAME = re.compile(
    rf"(?:[a-z+]+://)?(?:(?:\w[\w.:-]{{0,349}}/)?\w[\w-]{{0,79}}/)?{_PART}(?::{_PART}){{0,2}}", re.ASCII | re.IGNORECASE
)

_PULLING = frozenset({"/api/embed", "/api/embeddings", "/v1/embeddings"})
"""Paths on which Ollama advises to pull a model that it does not find."""


class Reply(msgspec.Struct, frozen=True):
    """A whole HTTP answer."""

    status: int
    content_type: str
    body: bytes


def body(dialect: DialectName, error: HerdError) -> Reply:
    """Return what a client of this dialect is told before the first byte of an answer.

    What a node answered stays as it was where both speak one dialect, and is put into the client's shape where not.
    """
    if isinstance(error, NodeAnswered):
        return _forwarded(dialect, error)
    return spelled(dialect, error.status, error.message)


def spelled(dialect: DialectName, status: int, message: str) -> Reply:
    """Return an error with this status and text in the shape of a dialect. It is never empty."""
    spoken = DIALECTS[dialect]
    return Reply(int(status), spoken.error_type, spoken.error(status, message or _phrase(status)))


def model_not_found(path: str, asked: str) -> HerdError:
    """Return the error for a model that no node has, in the words that Ollama uses on this path."""
    if not _NAME.fullmatch(asked.strip()):
        return BadRequest("invalid model name")
    return ModelNotFound(
        f'model "{asked}" not found, try pulling it first' if path in _PULLING else f"model '{asked}' not found"
    )


def message(error: HerdError) -> str:
    """Return the text of an error, for the log: of a node's answer the node's own words."""
    if not isinstance(error, NodeAnswered):
        return error.message
    for dialect in DIALECTS.values():
        complaint = dialect.complaint(error.body)
        if complaint is not None:
            return excerpt(complaint)
    return excerpt(_first_line(error)) or error.message


def _forwarded(dialect: DialectName, error: NodeAnswered) -> Reply:
    if DIALECTS[dialect].complaint(error.body) is not None:
        return Reply(int(error.status), error.content_type or DIALECTS[dialect].error_type, error.body)
    return spelled(dialect, error.status, message(error))


def _first_line(error: NodeAnswered) -> str:
    """Return the first line of a plain text; a page of HTML says less than its status."""
    text = error.body.decode("utf-8", "replace").strip()
    if not text or text[0] in "<{[":
        return ""
    return text.splitlines()[0]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status {status}"
