"""What handlers share: made once by the composition root, found through the application."""

from typing import Any

import msgspec
from litestar import Litestar, Request

from herd.api.hearing import Hearing
from herd.core import Core
from herd.settings import Loaded, RouterSettings
from projections.tables import TraceTable

AnyRequest = Request[Any, Any, Any]


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a running router that handlers may use."""

    core: Core
    settings: Loaded[RouterSettings]
    traces: TraceTable
    hearing: Hearing = msgspec.field(default_factory=Hearing)

    @classmethod
    def of(cls, app: Litestar) -> "Shared":
        """Return what this application shares."""
        return app.state.shared
