"""Routing needs a dozen facts of a body: reading more would cost every request, reading less would route it wrongly."""

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from events.types import Dialect as DialectName
from events.types import Kind
from herd.errors import BadRequest
from herd.wire import ROUTES, large, lenient
from projections.fleet import canonical

NAME_MAX = 640
"""Characters of a model name: more than the longest host, namespace, model and tag together."""

FALLBACKS_MAX = 32
TAGS_MAX = 32
TAG_CHARACTERS_MAX = 128

ROUTER_FIELDS = frozenset({"metadata", "fallback_models"})
"""Fields that speak to the router and are taken out before a node sees the body."""


class Parsed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The facts of a request that matter for routing; the text of the client is not among them."""

    path: str
    kind: Kind
    dialect: DialectName
    model: str
    """Canonical name."""
    asked: str
    """The name as the client wrote it."""
    streaming: bool
    tokens_estimated: int
    needs: tuple[str, ...] = ()
    """Capabilities that the answering model must have: `tools`, `vision`."""
    num_ctx: int | None = None
    tokens_max: int | None = None
    """The client's limit on the answer; None where there is none."""
    fallbacks: tuple[str, ...] = ()
    """Canonical names of the models that the client would take instead, best first."""
    tags: tuple[str, ...] = ()
    """From the body's `metadata`; `tags()` adds those of the header and the user."""
    user: str = ""
    strip: bool = False
    """Whether the body carries fields for the router, which `stripped()` takes out."""
    is_load: bool = False
    """Nothing to answer: the client wants the model in memory. The answer is one JSON object, never a stream."""
    is_unload: bool = False
    """Nothing to answer: the client wants the model out of memory. Never true together with `is_load`."""


def parse(path: str, body: bytes) -> Parsed:
    """Read what routing needs of a body sent to one of ROUTES.

    Raises `BadRequest`, or `ModelNotFound` where Ollama answers a missing name so; with Ollama's own texts.
    """
    if len(body) > large.READ_MAX_BYTES and not body.isspace():
        return _measured(path, body)
    dialect, route = ROUTES[path]
    if not body or body.isspace():
        raise BadRequest(dialect.body_missing)
    read = lenient.decode(route.read, body)
    if read.empty or not read.model:
        # Rare enough to look again for keys in another case, which Go accepts and the fast decoder skips.
        read = lenient.strict(route.read, lenient.mended(body))
    asked = _text(read.model or "")
    if not asked.strip():
        raise route.model_missing()
    if len(asked) > NAME_MAX:
        raise BadRequest("invalid model name")
    size = read.size
    parsed = Parsed(  # not all fields: Python calls with more than 15 keywords by a way that takes five times as long
        path=path,
        kind=route.kind,
        dialect=dialect.name,
        model=canonical(asked),
        asked=asked,
        streaming=route.streaming if read.stream is None else read.stream,
        tokens_estimated=size.tokens,
        needs=(("tools",) if read.uses_tools else ()) + (("vision",) if size.images else ()),
        num_ctx=read.num_ctx,
        tokens_max=read.tokens_max,
        fallbacks=_fallbacks(read.fallback_models) if read.fallback_models else (),
        tags=_tags(read.metadata) if read.metadata else (),
        user=_text(read.user)[:TAG_CHARACTERS_MAX] if isinstance(read.user, str) else "",
        strip=read.metadata is not msgspec.UNSET or read.fallback_models is not msgspec.UNSET,
    )
    if not read.empty:
        return parsed
    return msgspec.structs.replace(parsed, is_load=not read.unloads, is_unload=read.unloads)


def _measured(path: str, body: bytes) -> Parsed:
    measured = large.measure(ROUTES[path][1].kind, body)
    rest = parse(path, measured.rest)
    sees = measured.size.images and "vision" not in rest.needs
    return msgspec.structs.replace(
        rest,
        tokens_estimated=rest.tokens_estimated + measured.size.tokens,
        needs=(*rest.needs, "vision") if sees else rest.needs,
        strip=rest.strip and measured.strippable,
        # Whatever makes it large may be a question whose key has another case.
        is_load=False,
        is_unload=False,
    )


def tags(parsed: Parsed, header: str | None = None) -> tuple[str, ...]:
    """Return all tags of a request, each once: the body's, those of the `X-Herd-Tags` header, then the user."""
    if not header and not parsed.user:
        return parsed.tags
    named = (tag.strip() for tag in header.split(",")) if header else ()
    user = (f"user:{parsed.user}",) if parsed.user else ()
    return _bounded((*parsed.tags, *named, *user))


def stripped(body: bytes) -> bytes:
    """Return the body without the fields that speak to the router; all others keep their bytes."""
    return msgspec.json.encode(
        {key: raw for key, raw in lenient.fields(body).items() if key.lower() not in ROUTER_FIELDS}
    )


def _fallbacks(names: list[str]) -> tuple[str, ...]:
    cleaned = [_text(name) for name in names[:FALLBACKS_MAX]]
    return tuple(dict.fromkeys(canonical(name) for name in cleaned if name.strip() and len(name) <= NAME_MAX))


def _tags(metadata: Any) -> tuple[str, ...]:
    given = cast("dict[str, Any]", metadata).get("tags") if isinstance(metadata, dict) else None
    if not isinstance(given, list):
        return ()
    # Only plain values: the text of a nested object is nobody's tag.
    return _bounded(str(tag) for tag in cast("list[Any]", given) if tag and isinstance(tag, str | int | float))


def _bounded(named: Iterable[str]) -> tuple[str, ...]:
    unique = dict.fromkeys(_text(tag)[:TAG_CHARACTERS_MAX] for tag in named if tag)
    return tuple(unique)[:TAGS_MAX]


def _text(given: str) -> str:
    """Return a text that can be written as UTF-8: a lone surrogate, which JSON can spell, becomes a question mark."""
    return given if given.isascii() else given.encode("utf-8", "replace").decode()
