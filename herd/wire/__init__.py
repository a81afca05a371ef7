"""The wire: what clients and nodes say to each other, as pure functions and small state machines over bytes.

Nothing here reads a socket, a clock or a file; bytes come in, values and bytes come out, and time is an argument.
`request` reads a body as far as routing needs, `large` measures one of megabytes instead, `ending` watches an answer go
by, `failure` spells errors, `translate` stands between a client and a node that speak different dialects. A dialect
(`dialect.Dialect`) is one file and one line here.
"""

from collections.abc import Mapping

from events.types import Dialect as DialectName
from herd.wire.dialect import Dialect, Route
from herd.wire.ollama import OLLAMA
from herd.wire.openai import OPENAI

DIALECTS: Mapping[DialectName, Dialect] = {dialect.name: dialect for dialect in (OLLAMA, OPENAI)}

ROUTES: Mapping[str, tuple[Dialect, Route]] = {
    path: (dialect, route) for dialect in DIALECTS.values() for path, route in dialect.routes.items()
}
"""Every inference path that a client may call."""
