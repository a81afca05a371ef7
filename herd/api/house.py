"""Everything but inference is an ordinary Litestar application: one address, many endpoints, one shape of error."""

import logging
from typing import Any

from litestar import Litestar, MediaType, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import Message, Scope

from events.store import StoreError
from herd import __version__
from herd.api import HANDLERS
from herd.api.state import AnyRequest, Shared
from herd.errors import HerdError

logger = logging.getLogger(__name__)

#: Ollama's routes that this release does not have. Its command cannot read the plain text of an unknown path.
NOT_SERVED = frozenset(
    f"/api/{name}" for name in ("show", "pull", "push", "create", "copy", "delete", "me", "signout", "status")
)


def house(shared: Shared) -> Litestar:
    """Return the application for every path that the door does not answer itself."""

    async def name(message: Message, _: Scope) -> None:
        """Give an answer an id that a user can quote; inference answers carry the id of their request instead."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", shared.core.new_id().encode())]

    return Litestar(
        route_handlers=list(HANDLERS),
        state=State({"shared": shared}),
        exception_handlers={
            HerdError: _herd_error,
            HTTPException: _http_error,
            StoreError: _store_error,
            Exception: _bug,
        },
        before_send=[name],
        # As JSON only: the pages that show it load their scripts from other people's servers.
        openapi_config=OpenAPIConfig(
            title="Herd",
            version=__version__,
            path="/schema",
            render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
        ),
        logging_config=None,
    )


def _herd_error(_: AnyRequest, error: HerdError) -> Response[Any]:
    content = {"error": error.message} | ({"hint": error.hint} if error.hint else {})
    return Response(content, status_code=error.status)


def _store_error(_: AnyRequest, error: StoreError) -> Response[Any]:
    return Response({"error": str(error)}, status_code=503)


def _http_error(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """Answer as Ollama does: plain text for a path or a method that does not exist."""
    path = request.url.path
    if error.status_code == 404 and path in NOT_SERVED:
        return Response(
            {"error": f"herd {__version__} does not serve {path}; ask a node's own Ollama"}, status_code=501
        )
    if error.status_code == 404:
        return Response("404 page not found", status_code=404, media_type=MediaType.TEXT)
    if error.status_code == 405:
        return Response("405 method not allowed", status_code=405, media_type=MediaType.TEXT, headers=error.headers)
    return Response({"error": error.detail}, status_code=error.status_code)


def _bug(request: AnyRequest, error: Exception) -> Response[Any]:
    logger.error("a bug failed %s %s", request.method, request.url.path, exc_info=error)
    content = {"error": f"internal error ({type(error).__name__}); see the router's log"}
    return Response(content, status_code=500)
