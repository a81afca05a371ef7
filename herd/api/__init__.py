"""The HTTP face of the router. A new endpoint is a handler in a file here and its file's line in HANDLERS."""

from herd.api import fleet, ingest

HANDLERS = (*fleet.HANDLERS, *ingest.HANDLERS)
