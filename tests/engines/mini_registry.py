"""Pulling is what a real Ollama cannot do on a closed network, unless a registry stands on the same machine."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

_MANIFEST = re.compile(r"/v2/([\w.-]+)/([\w.-]+)/manifests/([\w.-]+)")
_BLOB = re.compile(r"/v2/[\w.-]+/[\w.-]+/blobs/(sha256:[0-9a-f]{64})")
_STORED = re.compile(r"/sha256:([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PIECE_BYTES = 1 << 20


class MiniRegistry:
    """Serves an OLLAMA_MODELS folder to `/api/pull`, read-only, alive inside a `with` block.

    Pull `registry.name_of("smollm2:135m")` with `"insecure": true`; that is also the name the pulled model gets.
    """

    def __init__(self, models_folder: Path) -> None:
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("_Handler", (_Handler,), {"models_folder": models_folder})
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="mini-registry")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def name_of(self, model: str) -> str:
        """What to pull to get that model from here."""
        return f"http://127.0.0.1:{self._server.server_port}/library/{model}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models_folder = Path()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name is the library's
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if blob := _BLOB.fullmatch(self.path):
            # The real registry sends to another host for blobs, and Ollama insists on being sent.
            self._head(
                307, 0, {"Location": f"http://{self.headers['Host'].replace('127.0.0.1', 'localhost')}/{blob[1]}"}
            )
        elif manifest := _MANIFEST.fullmatch(self.path):
            path = self.models_folder.joinpath("manifests/registry.ollama.ai", *manifest.groups())
            self._file(path, "application/vnd.docker.distribution.manifest.v2+json")
        elif stored := _STORED.fullmatch(self.path):
            self._file(self.models_folder / "blobs" / f"sha256-{stored[1]}", "application/octet-stream")
        else:
            self._head(404, 0, {})

    def _file(self, path: Path, content_type: str) -> None:
        if not path.is_file():
            self._head(404, 0, {})
            return
        size = path.stat().st_size
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = int(asked[2]) if asked and asked[2] else size - 1
        headers = {"Content-Type": content_type, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self._head(206 if asked else 200, end - start + 1, headers)
        if self.command == "GET":
            with path.open("rb") as file:
                file.seek(start)
                for at in range(start, end + 1, _PIECE_BYTES):
                    self.wfile.write(file.read(min(_PIECE_BYTES, end + 1 - at)))

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()
