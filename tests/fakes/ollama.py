"""An Ollama node that a test can question and break: real wire formats, invented tokens.

    async with FakeOllama(models=["llama3:8b"]) as node:
        node.faults.reset_after_lines = 3

or as a program: `python -m tests.fakes.ollama --models llama3:8b,all-minilm --tokens 20 --delay-ms 10`. It words
things as Ollama 0.33 does; `tests/contract` holds it to what real servers do.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import re
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, NamedTuple, cast

import msgspec

from tests.fakes import go
from tests.fakes.access import foreign_origin, host_allowed, origin_allowed
from tests.fakes.answers import Answer, ToolCall, answer_to, normalised, part_of, text_of, vector_of
from tests.fakes.connection import Reply, Request
from tests.fakes.scheduler import FOREVER_S, FakeModel, QueueFull, Scheduler, Wish
from tests.fakes.server import FakeServer

NATIVE_JSON = "application/json; charset=utf-8"
OPENAI_JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
PLAIN = "text/plain"

#: Options whose change makes Ollama start another runner. Sampling options do not.
RUNNER_OPTIONS = ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
_INTEGER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_predict", "seed", "top_k"}
)

_CORS_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,X-Stainless-Package-Version,"
    "X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
_PART = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}", re.IGNORECASE)


class Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, text: str, *, while_decoding: bool = False) -> None:
        super().__init__(text)
        self.status, self.text, self.while_decoding = status, text, while_decoding


class Job(NamedTuple):
    """A question to a model, out of whichever dialect."""

    asked: str
    """The model's name as the client wrote it."""
    wish: Wish
    answer: Answer
    streaming: bool
    usage_wanted: bool = False
    """`stream_options.include_usage`."""


class FakeOllama(FakeServer):
    """A fake Ollama with a scheduler: slots, loads, eviction and keep-alive behave as in the real one.

    `models` are names or FakeModel. A name gets tools, or embedding if it sounds like an embedding model.
    `registry` are the models that a pull will find. All times are in milliseconds except `keep_alive_s`.
    """

    spoiled = frozenset(
        {
            "/api/chat",
            "/api/generate",
            "/api/embed",
            "/api/embeddings",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
        }
    )

    def __init__(
        self, *, models: Iterable[str | FakeModel] = ("llama3:8b",), registry: Iterable[str | FakeModel] = (),
        port: int = 0, version: str = "0.33.0", tokens: int = 8, delay_ms: float = 0.0, load_ms: float = 0.0,
        num_parallel: int = 1, max_loaded: int = 3, max_queue: int = 512, keep_alive_s: float = 300.0,
        context_length: int = 4096,
    ) -> None:  # fmt: skip
        super().__init__(port=port)
        self.models = {model.name: model for model in map(_declared, models)}
        """What is on disk, by canonical name; may be changed at any time."""
        self.registry = {model.name: model for model in map(_declared, registry)}
        self.version = version
        self.tokens, self.delay_ms, self.context_length = tokens, delay_ms, context_length
        self.generated = 0
        """Tokens generated so far, whether or not anybody read them."""
        self.scheduler = Scheduler(
            self.bell, num_parallel=num_parallel, max_loaded=max_loaded, max_queue=max_queue, load_ms=load_ms,
            keep_alive_s=keep_alive_s,
        )  # fmt: skip
        self._routes: dict[tuple[str, str], Callable[[Request, Reply], Coroutine[Any, Any, None]]] = {
            ("HEAD", "/"): self._root,
            ("GET", "/"): self._root,
            ("HEAD", "/api/version"): self._version,
            ("GET", "/api/version"): self._version,
            ("HEAD", "/api/tags"): self._tags,
            ("GET", "/api/tags"): self._tags,
            ("GET", "/api/ps"): self._ps,
            ("POST", "/api/show"): self._show,
            ("POST", "/api/copy"): self._copy,
            ("DELETE", "/api/delete"): self._delete,
            ("POST", "/api/pull"): self._pull,
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/embed"): self._embed,
            ("POST", "/api/embeddings"): self._embeddings,
            ("GET", "/v1/models"): self._v1_models,
            ("POST", "/v1/chat/completions"): self._v1_chat,
            ("POST", "/v1/completions"): self._v1_completions,
            ("POST", "/v1/embeddings"): self._v1_embeddings,
        }

    # --- what every route shares ---

    def state(self) -> dict[str, Any]:
        told = self.scheduler
        return super().state() | {
            "loads": told.loads, "evictions": told.evictions, "running": told.running, "waiting": told.waiting,
            "peak": told.peak, "generated": self.generated,
        }  # fmt: skip

    def headers(self, request: Request) -> dict[str, str]:
        origin = foreign_origin(request)
        return {"access-control-allow-origin": origin, "vary": "Origin"} if origin and origin_allowed(origin) else {}

    def error(self, request: Request, status: int, text: str) -> tuple[bytes, str]:
        if not request.path.startswith("/v1/"):
            return go.encode({"error": text}), NATIVE_JSON
        kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
        return go.encode({"error": {"message": text, "type": kind, "param": None, "code": None}}) + b"\n", OPENAI_JSON

    async def route(self, request: Request, reply: Reply) -> None:
        origin = foreign_origin(request)
        if not host_allowed(request) or (origin is not None and not origin_allowed(origin)):
            await reply.whole(403, b"", "")
            return
        if request.method == "OPTIONS" and origin is not None:
            await reply.whole(
                204, b"", "", **{
                    "access-control-allow-methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
                    "access-control-allow-headers": _CORS_HEADERS, "access-control-max-age": "43200",
                },
            )  # fmt: skip
            return
        handler = self._routes.get((request.method, request.path))
        if handler is None:
            await self._no_route(request, reply)
            return
        try:
            await handler(request, reply)
        except Refused as refused:
            body, content_type = self.error(request, refused.status, refused.text)
            if refused.while_decoding:
                # These come from the web framework, not from the handler: another content type, no line end.
                body, content_type = body.rstrip(b"\n"), NATIVE_JSON
            await reply.whole(refused.status, body, content_type)
        except QueueFull:
            text = "server busy, please try again.  maximum pending requests exceeded"
            await reply.whole(503, *self.error(request, 503, text))

    async def _no_route(self, request: Request, reply: Reply) -> None:
        clean = re.sub("/+", "/", request.path)
        clean = clean.rstrip("/") or "/"
        known = [method for method, path in self._routes if path == clean]
        if known and clean != request.path:
            status = 301 if request.method == "GET" else 307
            body = f'<a href="{clean}">Moved Permanently</a>.\n\n'.encode() if status == 301 else b""
            await reply.whole(status, body, "text/html; charset=utf-8" if body else "", location=clean)
        elif known:
            await reply.whole(405, b"405 method not allowed", PLAIN, allow=", ".join(known))
        elif request.path.startswith("/v1/models/") and request.method == "GET":
            await self._v1_model(request, reply)
        else:
            await reply.whole(404, b"404 page not found", PLAIN)

    # --- service and inventory ---

    async def _root(self, request: Request, reply: Reply) -> None:
        await reply.whole(200, b"Ollama is running", "text/plain; charset=utf-8")

    async def _version(self, request: Request, reply: Reply) -> None:
        await reply.whole(200, go.encode({"version": self.version}), NATIVE_JSON)

    async def _tags(self, request: Request, reply: Reply) -> None:
        newest_first = sorted(self.models.values(), key=lambda model: model.modified_at, reverse=True)
        entries = [
            {
                "name": model.name, "model": model.name, "modified_at": model.modified_at, "size": model.size_bytes,
                "digest": model.digest, "capabilities": model.capabilities,
                "details": model.details
                | {"context_length": model.context_length, "embedding_length": model.embedding_length},
            }
            for model in newest_first
        ]  # fmt: skip
        await reply.whole(200, go.encode({"models": entries}), NATIVE_JSON)

    async def _ps(self, request: Request, reply: Reply) -> None:
        now, monotonic = time.time_ns(), time.monotonic()
        entries = [
            {
                "name": each.model.name, "model": each.model.name, "size": each.size_bytes, "digest": each.model.digest,
                "details": each.model.details, "expires_at": go.rfc3339(now + int((each.expires_at - monotonic) * 1e9)),
                "size_vram": each.size_bytes, "context_length": each.num_ctx,
            }
            for each in self.scheduler.loaded
        ]  # fmt: skip
        await reply.whole(200, go.encode({"models": entries}), NATIVE_JSON)

    async def _show(self, request: Request, reply: Reply) -> None:
        body = _read(request, "ShowRequest")
        asked = body.get("model") or body.get("name") or ""
        if not asked:
            raise Refused(400, "model is required")
        model = self._find(asked, f"model '{_canonical(asked)}' not found")
        info = {
            "general.architecture": model.family, "general.basename": model.name.partition(":")[0],
            f"{model.family}.context_length": model.context_length,
            f"{model.family}.embedding_length": model.embedding_length,
            "tokenizer.ggml.tokens": None,
        }  # fmt: skip
        answer: dict[str, Any] = {
            "modelfile": f"# Modelfile generated by \"ollama show\"\n# FROM {model.name}\n",
            "template": "{{ .Prompt }}",
            "details": model.details, "model_info": info, "tensors": [], "capabilities": model.capabilities,
            "modified_at": model.modified_at,
        }  # fmt: skip
        await reply.whole(200, go.encode(answer), NATIVE_JSON)

    async def _copy(self, request: Request, reply: Reply) -> None:
        body = _read(request, "CopyRequest")
        source, target = body.get("source", ""), _canonical(body.get("destination", ""))
        model = self._find(source, f'model "{source}" not found')
        self.models[target] = msgspec.structs.replace(model, name=target, modified_at=go.rfc3339(time.time_ns()))
        await reply.whole(200, b"", "")

    async def _delete(self, request: Request, reply: Reply) -> None:
        body = _read(request, "DeleteRequest")
        asked = body.get("model") or body.get("name") or ""
        if not asked:
            raise Refused(400, "model is required")
        del self.models[self._find(asked, f"model '{asked}' not found").name]
        await reply.whole(200, b"", "")

    async def _pull(self, request: Request, reply: Reply) -> None:
        body = _read(request, "PullRequest")
        name = _canonical(body.get("model") or body.get("name") or "")
        streaming, model = body.get("stream", True), self.registry.get(name)
        if model is None and not streaming:
            raise Refused(500, "pull model manifest: file does not exist")
        layer = f"sha256:{model.digest}" if model else ""
        steps: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if model is None:
            steps.append({"error": "pull model manifest: file does not exist"})
        else:
            part = {"status": f"pulling {model.digest[:12]}", "digest": layer, "total": model.size_bytes}
            steps += [part, *({**part, "completed": model.size_bytes * quarter // 4} for quarter in range(1, 5))]
            steps += [{"status": "verifying sha256 digest"}, {"status": "writing manifest"}, {"status": "success"}]
        if streaming:
            await reply.open(NDJSON)
            for step in steps:
                await asyncio.sleep(self.delay_ms / 1000)
                if "status" in step and step["status"] == "success" and model is not None:
                    self.models[name] = model
                await reply.line(go.encode(step) + b"\n", _native_error)
            await reply.end()
        elif model is not None:
            await asyncio.sleep(self.delay_ms * len(steps) / 1000)
            self.models[name] = model
            await reply.whole(200, go.encode(steps[-1]), NATIVE_JSON)

    # --- native inference ---

    async def _chat(self, request: Request, reply: Reply) -> None:
        body = _read(request, "ChatRequest")
        asked = body.get("model") or ""
        if not asked:
            raise Refused(400, "model is required")
        messages: list[dict[str, Any]] = body.get("messages") or []
        model = self._find(asked)
        _demand(model, asked, "completion", "chat")
        if body.get("tools") and "tools" not in model.capabilities:
            raise Refused(400, f"{_full_name(model)} does not support tools")
        wish = self._wish(model, body)
        empty = {"message": {"role": "assistant", "content": ""}}
        if not messages:
            await self._load_only(asked, wish, empty, reply)
            return
        job = self._native_job(asked, wish, body, messages[-1].get("content") or "")

        def item(text: str, thinking: str, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if thinking:
                message["thinking"] = thinking
            if calls:
                message["tool_calls"] = [
                    {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}
                    for index, call in enumerate(calls)
                ]
            return {"message": message}

        await self._native_answer(reply, job, item, {})

    async def _generate(self, request: Request, reply: Reply) -> None:
        body = _read(request, "GenerateRequest")
        asked = body.get("model") or ""
        model = self._find(asked)
        _demand(model, asked, "completion", "generate")
        if body.get("suffix") and "insert" not in model.capabilities:
            raise Refused(400, f"{_full_name(model)} does not support insert")
        wish = self._wish(model, body)
        if not body.get("prompt"):
            await self._load_only(asked, wish, {"response": ""}, reply)
            return
        job = self._native_job(asked, wish, {**body, "tools": ()}, body["prompt"])

        def item(text: str, thinking: str, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
            return {"response": text, "thinking": thinking} if thinking else {"response": text}

        context = {} if body.get("raw") else {"context": list(range(job.answer.prompt_tokens + len(job.answer.tokens)))}
        await self._native_answer(reply, job, item, context)

    def _native_job(self, asked: str, wish: Wish, body: dict[str, Any], prompt: str) -> Job:
        capable = "thinking" in wish.model.capabilities
        if body.get("think") and not capable:
            raise Refused(400, f'"{asked}" does not support thinking')
        shape: Any = body.get("format")
        shown = json.dumps(shape)
        if shape and shape != "json" and not hasattr(shape, "keys"):
            raise Refused(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')
        answer = answer_to(
            prompt, tokens=self.tokens, limit=part_of(body, "options").get("num_predict"),
            tools=body.get("tools") or (),
            think=capable and body.get("think") is not False, as_json=bool(shape),
        )  # fmt: skip
        streaming = body.get("stream")
        return Job(asked, wish, answer, streaming is None or bool(streaming))

    async def _load_only(self, asked: str, wish: Wish, empty: dict[str, Any], reply: Reply) -> None:
        unload = wish.keep_alive_s == 0
        if unload:
            self.scheduler.unload(wish.model)
        else:
            await self.scheduler.load(wish)
        head = {"model": asked, "created_at": go.rfc3339(time.time_ns())}
        end = {"done": True, "done_reason": "unload" if unload else "load"}
        await reply.whole(200, go.encode(head | empty | end), NATIVE_JSON)

    async def _native_answer(
        self,
        reply: Reply,
        job: Job,
        item: Callable[[str, str, tuple[ToolCall, ...]], dict[str, Any]],
        last: dict[str, Any],
    ) -> None:
        def record(text: str, thinking: str, *, final: dict[str, Any] | None = None) -> dict[str, Any]:
            body = item(text, thinking, job.answer.calls if final is not None else ())
            return (
                {"model": job.asked, "created_at": go.rfc3339(time.time_ns())}
                | body
                | {"done": final is not None}
                | (final or {})
            )

        started = time.monotonic_ns()
        async with self.scheduler.slot(job.wish) as load_s:
            opened = False
            began = time.monotonic_ns()
            async for text, thinking in self._tokens(job.answer):
                if job.streaming:
                    if not opened:
                        await reply.open(NDJSON)
                        opened = True
                    await reply.line(go.encode(record(text, thinking)) + b"\n", _native_error)
            final = {"done_reason": self.lengthened(job.answer.reason)} | last | _metrics(job, started, began, load_s)
            filler = "x" * self.faults.big_final_bytes
            if not job.streaming:
                whole = record("".join(job.answer.tokens) + filler, "".join(job.answer.thinking), final=final)
                await reply.whole(200, go.encode(whole), NATIVE_JSON)
                return
            if not opened:
                await reply.open(NDJSON)
            await reply.line(go.encode(record(filler, "", final=final)) + b"\n", _native_error)
            await reply.end()

    async def _embed(self, request: Request, reply: Reply) -> None:
        body = _read(request, "EmbedRequest")
        asked = body.get("model") or ""
        if not asked:
            raise Refused(404, "model '' not found")
        model = self._find(asked, f'model "{asked}" not found, try pulling it first')
        texts = _inputs(body.get("input"))
        wish = self._wish(model, body)
        if not texts:
            await self.scheduler.load(wish)
            await reply.whole(200, go.encode({"model": asked, "embeddings": []}), NATIVE_JSON)
            return
        started = time.monotonic_ns()
        vectors, load_s = await self._vectors(wish, texts)
        answer = {
            "model": asked, "embeddings": [normalised(vector[: body.get("dimensions")]) for vector in vectors],
            "total_duration": time.monotonic_ns() - started, "load_duration": int(load_s * 1e9) + 1,
            "prompt_eval_count": sum(len(text.split()) for text in texts),
        }  # fmt: skip
        await reply.whole(200, go.encode(answer), NATIVE_JSON)

    async def _embeddings(self, request: Request, reply: Reply) -> None:
        body = _read(request, "EmbeddingRequest")
        asked = body.get("model") or ""
        if not asked:
            raise Refused(400, "model is required")
        missing = f'model "{asked}" not found, try pulling it first'
        model = self._find(asked, missing)
        if asked not in (model.name, model.name.removesuffix(":latest")):
            # This oldest of the routes compares names letter by letter.
            raise Refused(404, missing)
        vector: list[float] = []
        if prompt := body.get("prompt"):
            vectors, _ = await self._vectors(self._wish(model, body), [prompt])
            vector = vectors[0]
        else:
            await self.scheduler.load(self._wish(model, body))
        await reply.whole(200, go.encode({"embedding": vector}), NATIVE_JSON)

    # --- OpenAI dialect ---

    async def _v1_models(self, request: Request, reply: Reply) -> None:
        entries = [_v1_entry(model, model.name) for model in self.models.values()]
        await reply.whole(200, go.encode({"object": "list", "data": entries or None}) + b"\n", OPENAI_JSON)

    async def _v1_model(self, request: Request, reply: Reply) -> None:
        asked = request.path.removeprefix("/v1/models/")
        try:
            body = _v1_entry(self._find(asked, f"model '{_canonical(asked)}' not found"), asked)
            await reply.whole(200, go.encode(body) + b"\n", OPENAI_JSON)
        except Refused as refused:
            await reply.whole(refused.status, *self.error(request, refused.status, refused.text))

    async def _v1_chat(self, request: Request, reply: Reply) -> None:
        body = _read(request, "ChatCompletionRequest", empty="EOF")
        messages: list[dict[str, Any]] = body.get("messages") or []
        if not messages:
            raise Refused(400, "[] is too short - 'messages'", while_decoding=True)
        for message in messages:
            content: Any = message.get("content")
            if not isinstance(content, str | list) and not message.get("tool_calls"):
                raise Refused(400, f"invalid message content type: {go.type_of(content)}", while_decoding=True)
        asked = body.get("model") or ""
        if not asked:
            raise Refused(400, "model is required")
        model = self._find(asked)
        _demand(model, asked, "completion", "chat")
        if body.get("tools") and "tools" not in model.capabilities:
            raise Refused(400, f"{_full_name(model)} does not support tools")
        job = self._v1_job(asked, model, body, text_of(messages[-1].get("content")))
        identity = {"id": _v1_id("chatcmpl", job)}
        if job.streaming:
            await self._v1_stream(
                reply, job, _ChatChunks({**identity, "object": "chat.completion.chunk"} | _v1_head(asked))
            )
            return
        async with self.scheduler.slot(job.wish):
            await _exhaust(self._tokens(job.answer))
            message: dict[str, Any] = {"role": "assistant", "content": self._v1_text(job)}
            if job.answer.thinking:
                message["reasoning"] = "".join(job.answer.thinking)
            if job.answer.calls:
                message["tool_calls"] = _v1_calls(job.answer.calls)
            choice = {"index": 0, "message": message, "finish_reason": self.lengthened(_v1_reason(job))}
            whole = (
                identity | {"object": "chat.completion"} | _v1_head(asked) | {"choices": [choice], "usage": _usage(job)}
            )
            await reply.whole(200, go.encode(whole) + b"\n", OPENAI_JSON)

    async def _v1_completions(self, request: Request, reply: Reply) -> None:
        body = _read(request, "CompletionRequest", empty="EOF")
        asked = body.get("model") or ""
        model = self._find(asked)
        _demand(model, asked, "completion", "generate")
        job = self._v1_job(asked, model, body, body.get("prompt") or "", may_think=False)
        if not body.get("prompt"):
            await self.scheduler.load(job.wish)
            job = job._replace(answer=Answer((), (), (), "load", 0), streaming=False)
        head = {"id": _v1_id("cmpl", job), "object": "text_completion"} | _v1_head(asked)
        if job.streaming:
            await self._v1_stream(reply, job, _TextChunks(head, usage=job.usage_wanted))
            return
        async with self.scheduler.slot(job.wish):
            await _exhaust(self._tokens(job.answer))
            choice = {"text": self._v1_text(job), "index": 0, "finish_reason": self.lengthened(job.answer.reason)}
            await reply.whole(200, go.encode(head | {"choices": [choice], "usage": _usage(job)}) + b"\n", OPENAI_JSON)

    async def _v1_embeddings(self, request: Request, reply: Reply) -> None:
        body = _read(request, "EmbedRequest", empty="EOF")
        if body.get("input") in (None, []):
            raise Refused(400, "invalid input", while_decoding=True)
        asked = body.get("model") or ""
        if not asked:
            raise Refused(404, "model '' not found")
        model = self._find(asked, f'model "{asked}" not found, try pulling it first')
        texts = _inputs(body["input"])
        vectors, _ = await self._vectors(self._wish(model, {}), texts)
        data: list[dict[str, Any]] = []
        for index, vector in enumerate(vectors):
            numbers = normalised(vector[: body.get("dimensions")])
            packed = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
            shown = packed if body.get("encoding_format") == "base64" else numbers
            data.append({"object": "embedding", "embedding": shown, "index": index})
        count = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        await reply.whole(
            200, go.encode({"object": "list", "data": data, "model": asked, "usage": usage}) + b"\n", OPENAI_JSON
        )

    def _v1_job(
        self, asked: str, model: FakeModel, body: dict[str, Any], prompt: str, *, may_think: bool = True
    ) -> Job:
        effort = body.get("reasoning_effort") or part_of(body, "reasoning").get("effort")
        answer = answer_to(
            prompt, tokens=self.tokens, limit=body.get("max_tokens"), tools=body.get("tools") or (),
            think=may_think and "thinking" in model.capabilities and effort != "none",
            as_json=bool(body.get("response_format")),
        )  # fmt: skip
        usage_wanted = bool(part_of(body, "stream_options").get("include_usage"))
        return Job(asked, self._wish(model, {}), answer, bool(body.get("stream")), usage_wanted)

    def _v1_text(self, job: Job) -> str:
        return "".join(job.answer.tokens) + "x" * self.faults.big_final_bytes

    async def _v1_stream(self, reply: Reply, job: Job, chunks: "_ChatChunks | _TextChunks") -> None:
        def event(body: dict[str, Any]) -> bytes:
            return b"data: " + go.encode(body) + b"\n\n"

        def broken(text: str) -> bytes:
            # Ollama loses the message here and sends an empty chunk.
            return event(chunks.head | {"model": "", "choices": [chunks.choice("", "", None)]})

        async with self.scheduler.slot(job.wish):
            opened = False
            async for text, thinking in self._tokens(job.answer):
                if not opened:
                    await reply.open(SSE)
                    opened = True
                await reply.line(event(chunks.chunk(text, thinking)), broken)
            if not opened:
                await reply.open(SSE)
            if job.answer.calls:
                await reply.line(event(chunks.calls(job.answer.calls)), broken)
            if self.faults.big_final_bytes:
                await reply.line(event(chunks.chunk("x" * self.faults.big_final_bytes, "")), broken)
            # Ollama makes all of these from one native item, and flushes once.
            await reply.line(event(chunks.finish(self.lengthened(_v1_reason(job)))), broken, flush=False)
            if job.usage_wanted:
                await reply.line(event(chunks.head | {"choices": [], "usage": _usage(job)}), broken, flush=False)
            await reply.line(b"data: [DONE]\n\n", broken)
            await reply.end()

    # --- the model itself ---

    async def _tokens(self, answer: Answer) -> AsyncIterator[tuple[str, str]]:
        """Text and thinking, one token at a time, as fast as this fake generates."""
        for thinking, each in ((True, answer.thinking), (False, answer.tokens)):
            for token in each:
                await asyncio.sleep(self.delay_ms / 1000)
                self.generated += 1
                self.bell.ring()
                yield ("", token) if thinking else (token, "")

    async def _vectors(self, wish: Wish, texts: list[str]) -> tuple[list[list[float]], float]:
        async with self.scheduler.slot(wish) as load_s:
            await asyncio.sleep(self.delay_ms * len(texts) / 1000)
            return [vector_of(text, wish.model.embedding_length) for text in texts], load_s

    def _find(self, asked: str, missing: str | None = None) -> FakeModel:
        """The model of that name in any spelling. Raises Refused with the text `missing`."""
        name = _canonical(asked)
        if name and not all(_PART.fullmatch(part) for part in re.split("[/:]", name)):
            raise Refused(400, "invalid model name")
        model = next((each for each in self.models.values() if each.name.lower() == name), None)
        if model is None or {asked, model.name} & set(self.faults.missing):
            raise Refused(404, missing or f"model '{asked}' not found")
        return model

    def _wish(self, model: FakeModel, body: dict[str, Any]) -> Wish:
        options = part_of(body, "options")
        for name in _INTEGER_OPTIONS & options.keys():
            if not isinstance(options[name], int | float):
                raise Refused(500, f'option "{name}" must be of type integer')
        num_ctx = min(options.get("num_ctx", self.context_length), model.context_length)
        chosen = tuple((name, options[name]) for name in RUNNER_OPTIONS if name in options)
        return Wish(model, num_ctx, chosen, _keep_alive_s(body.get("keep_alive")))


class _ChatChunks:
    """Bodies of `chat.completion.chunk` events: only the first names the role."""

    def __init__(self, head: dict[str, Any]) -> None:
        self.head = head
        self._role: dict[str, Any] = {"role": "assistant"}

    def choice(self, text: str, thinking: str, reason: str | None) -> dict[str, Any]:
        delta = self._role | {"content": text} | ({"reasoning": thinking} if thinking else {})
        self._role = {}
        return {"index": 0, "delta": delta, "finish_reason": reason}

    def chunk(self, text: str, thinking: str) -> dict[str, Any]:
        return self.head | {"choices": [self.choice(text, thinking, None)]}

    def calls(self, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
        choice = self.choice("", "", None)
        choice["delta"]["tool_calls"] = _v1_calls(calls)
        return self.head | {"choices": [choice]}

    def finish(self, reason: str) -> dict[str, Any]:
        return self.head | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


class _TextChunks:
    """Bodies of `text_completion` events: where usage is wanted, each carries one, of zeros."""

    def __init__(self, head: dict[str, Any], *, usage: bool) -> None:
        self.head = head
        self._usage = (
            {"usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)} if usage else {}
        )

    def choice(self, text: str, thinking: str, reason: str | None) -> dict[str, Any]:
        return {"text": text, "index": 0, "finish_reason": reason}

    def chunk(self, text: str, thinking: str) -> dict[str, Any]:
        return self.head | {"choices": [self.choice(text, thinking, None)]} | self._usage

    def calls(self, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
        raise AssertionError(f"a completion calls no tools: {calls}")

    def finish(self, reason: str) -> dict[str, Any]:
        return self.head | {"choices": [self.choice("", "", reason)]} | self._usage


def _declared(model: str | FakeModel) -> FakeModel:
    """Fill in what a declaration leaves open. A name may say its capabilities: `qwen3:4b@completion+thinking`."""
    if isinstance(model, str):
        name, _, said = model.partition("@")
        embeds = any(hint in name for hint in ("embed", "minilm", "bge-"))
        kind = ("embedding",) if embeds else ("completion", "tools")
        model = FakeModel(name=_canonical(name), capabilities=tuple(said.split("+")) if said else kind)
        if embeds:
            small = {"size_bytes": 45_960_996, "family": "bert", "context_length": 512, "parameter_size": "23M"}
            model = msgspec.structs.replace(model, **small)
    digest = model.digest or hashlib.sha256(model.name.encode()).hexdigest()
    return msgspec.structs.replace(model, digest=digest)


def _canonical(asked: str) -> str:
    name = asked.strip().lower().partition("://")[2] or asked.strip().lower()
    name = name.removesuffix(":local").removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if not name or ":" in name.rpartition("/")[2] else f"{name}:latest"


def _full_name(model: FakeModel) -> str:
    return f"registry.ollama.ai/library/{model.name}"


def _demand(model: FakeModel, asked: str, capability: str, wording: str) -> None:
    if capability not in model.capabilities:
        raise Refused(400, f'"{asked}" does not support {wording}')


def _read(request: Request, go_type: str, *, empty: str = "missing request body") -> dict[str, Any]:
    try:
        return go.decode(request.body, go_type)
    except ValueError as error:
        text = str(error)
        raise Refused(400, empty if text == "EOF" else text, while_decoding=True) from None


def _inputs(value: Any) -> list[str]:
    texts = cast("list[Any]", value if isinstance(value, list) else [] if value is None else [value])
    if not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    return texts


def _keep_alive_s(value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"Unsupported type: '{go.type_of(value)}'")
        seconds = go.duration_s(value) if isinstance(value, str) else value
    except ValueError as error:
        raise Refused(400, str(error), while_decoding=True) from None
    return seconds if seconds >= 0 else FOREVER_S


def _metrics(job: Job, started_ns: int, began_ns: int, load_s: float) -> dict[str, int]:
    """Durations in nanoseconds. Ollama leaves out what is zero."""
    now = time.monotonic_ns()
    metrics = {
        "total_duration": now - started_ns,
        "load_duration": int(load_s * 1e9) + 1,
        "prompt_eval_count": job.answer.prompt_tokens,
        "prompt_eval_duration": 1_000_000 * job.answer.prompt_tokens,
        "eval_count": len(job.answer.thinking) + len(job.answer.tokens) + len(job.answer.calls),
        "eval_duration": now - began_ns,
    }
    return {name: value for name, value in metrics.items() if value}


def _native_error(text: str) -> bytes:
    return go.encode({"error": text}) + b"\n"


async def _exhaust(tokens: AsyncIterator[Any]) -> None:
    async for _ in tokens:
        pass


def _v1_id(kind: str, job: Job) -> str:
    return f"{kind}-{int(hashlib.sha256(repr(job.answer).encode()).hexdigest(), 16) % 999}"


def _v1_head(asked: str) -> dict[str, Any]:
    return {"created": int(time.time()), "model": asked, "system_fingerprint": "fp_ollama"}


def _v1_entry(model: FakeModel, asked: str) -> dict[str, Any]:
    created = int(datetime.fromisoformat(model.modified_at).timestamp())
    return {"id": asked, "object": "model", "created": created, "owned_by": "library"}


def _v1_calls(calls: tuple[ToolCall, ...]) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id, "index": index, "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, separators=(",", ":"))},
        }
        for index, call in enumerate(calls)
    ]  # fmt: skip


def _v1_reason(job: Job) -> str:
    return "tool_calls" if job.answer.calls else job.answer.reason


def _usage(job: Job) -> dict[str, int]:
    said = len(job.answer.thinking) + len(job.answer.tokens) + len(job.answer.calls)
    heard = job.answer.prompt_tokens
    return {"prompt_tokens": heard, "completion_tokens": said, "total_tokens": heard + said}


async def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fakes.ollama", description="A fake Ollama node; prints its URL."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument(
        "--models", default="llama3:8b", help="comma-separated names; `name@completion+thinking` says abilities"
    )
    parser.add_argument("--tokens", type=int, default=8, help="tokens in an answer")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="time for each token")
    parser.add_argument("--load-ms", type=float, default=0.0, help="time to load a model")
    parser.add_argument("--num-parallel", type=int, default=1, help="slots per loaded model")
    parser.add_argument("--max-loaded", type=int, default=3, help="models in memory at once")
    parser.add_argument("--version", default="0.33.0", help="what /api/version says")
    given = vars(parser.parse_args())
    given["models"] = given["models"].split(",")
    async with FakeOllama(**given) as node:
        print(node.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
