"""A fake of llama.cpp's server, for nodes that speak OpenAI only: they report no sizes, no residency and other timings.

As a program: `python -m tests.fakes.openai_server --model smollm2 --tokens 20 --delay-ms 10`. Shapes and texts were
taken from a running llama.cpp server; like it, this fake answers any model name with the model that it serves.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

from tests.fakes.answers import Answer, ToolCall, answer_to, normalised, part_of, text_of, vector_of
from tests.fakes.connection import Reply, Request
from tests.fakes.scheduler import FOREVER_S, FakeModel, Scheduler, Wish
from tests.fakes.server import FakeServer

JSON = "application/json; charset=utf-8"


class FakeOpenAI(FakeServer):
    """One model behind an OpenAI-compatible server with `num_parallel` slots. Times are in milliseconds."""

    spoiled = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

    def __init__(
        self, *, model: str = "smollm2", embedding: bool = False, port: int = 0, tokens: int = 8, delay_ms: float = 0.0,
        num_parallel: int = 1, context_length: int = 4096,
    ) -> None:  # fmt: skip
        super().__init__(port=port)
        capabilities = ("embedding",) if embedding else ("completion", "tools")
        self.model = FakeModel(name=model, digest=model, capabilities=capabilities, context_length=context_length)
        self.tokens, self.delay_ms = tokens, delay_ms
        self.generated = 0
        """Tokens generated so far, whether or not anybody read them."""
        self.scheduler = Scheduler(
            self.bell, num_parallel=num_parallel, max_loaded=1, max_queue=0, load_ms=0.0, keep_alive_s=FOREVER_S
        )
        self._wish = Wish(self.model, context_length)
        self._routes: dict[tuple[str, str], Callable[[dict[str, Any], Request, Reply], Coroutine[Any, Any, None]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/embeddings"): self._embeddings,
        }

    def state(self) -> dict[str, Any]:
        told = self.scheduler
        return super().state() | {
            "running": told.running, "waiting": told.waiting, "peak": told.peak, "generated": self.generated
        }  # fmt: skip

    def headers(self, request: Request) -> dict[str, str]:
        return {"server": "llama.cpp", "access-control-allow-origin": request.header("origin") or ""}

    def error(self, request: Request, status: int, text: str) -> tuple[bytes, str]:
        kinds = {
            400: "invalid_request_error",
            404: "not_found_error",
            501: "not_supported_error",
            503: "unavailable_error",
        }
        return _json({"error": {"code": status, "message": text, "type": kinds.get(status, "server_error")}}), JSON

    async def route(self, request: Request, reply: Reply) -> None:
        handler = self._routes.get(("GET" if request.method == "HEAD" else request.method, request.path))
        if handler is None:
            await reply.whole(404, *self.error(request, 404, "File Not Found"))
        elif request.method != "POST":
            await handler({}, request, reply)
        else:
            try:
                body = json.loads(request.body)
            except ValueError as error:
                text = f"[json.exception.parse_error.101] parse error at line 1, column 1: {error}"
                await reply.whole(400, *self.error(request, 400, text))
                return
            await handler(body, request, reply)

    async def _health(self, body: dict[str, Any], request: Request, reply: Reply) -> None:
        await reply.whole(200, _json({"status": "ok"}), JSON)

    async def _models(self, body: dict[str, Any], request: Request, reply: Reply) -> None:
        meta = {
            "vocab_type": 2, "n_vocab": 49152, "n_ctx": self.model.context_length,
            "n_ctx_train": self.model.context_length,
            "n_embd": self.model.embedding_length, "n_params": 134515008, "size": 96576768, "ftype": "Q4_1",
        }  # fmt: skip
        entry = {
            "id": self.model.name, "aliases": [self.model.name], "tags": [], "object": "model",
            "created": int(time.time()), "owned_by": "llamacpp", "meta": meta,
        }  # fmt: skip
        await reply.whole(200, _json({"object": "list", "data": [entry]}), JSON)

    async def _chat(self, body: dict[str, Any], request: Request, reply: Reply) -> None:
        messages: list[dict[str, Any]] | None = body.get("messages")
        if messages is None:
            await reply.whole(400, *self.error(request, 400, "'messages' is required"))
            return
        answer = self._answer_to(text_of(messages[-1].get("content")) if messages else "", body)
        if not body.get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.tokens)}
            if answer.calls:
                message["tool_calls"] = _calls(answer.calls)
            choice = {"finish_reason": self._reason(answer), "index": 0, "message": message}
            await self._whole(request, reply, answer, {"object": "chat.completion", "choices": [choice]})
            return

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            choice = {"finish_reason": reason, "index": 0, "delta": delta}
            return {"object": "chat.completion.chunk", "choices": [choice]}

        opening = [chunk({"role": "assistant", "content": None})]
        calls = [chunk({"tool_calls": _calls(answer.calls)})] if answer.calls else []
        finish = chunk({}, self._reason(answer))
        last: dict[str, Any] = finish
        ending = [*calls, finish]
        if part_of(body, "stream_options").get("include_usage"):
            last = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(answer)}
            ending.append(last)
        await self._stream(request, reply, answer, opening, lambda token: chunk({"content": token}), ending)

    async def _completions(self, body: dict[str, Any], request: Request, reply: Reply) -> None:
        answer = self._answer_to(str(body.get("prompt") or ""), body)

        def chunk(text: str, reason: str | None = None) -> dict[str, Any]:
            choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
            return {"object": "text_completion", "choices": [choice]}

        if not body.get("stream"):
            await self._whole(request, reply, answer, chunk("".join(answer.tokens), self._reason(answer)))
            return
        ending = [chunk("", self._reason(answer)) | {"usage": _usage(answer)}]
        await self._stream(request, reply, answer, [], chunk, ending)

    async def _embeddings(self, body: dict[str, Any], request: Request, reply: Reply) -> None:
        if "embedding" not in self.model.capabilities:
            text = "This server does not support embeddings. Start it with `--embeddings`"
            await reply.whole(501, *self.error(request, 501, text))
            return
        given = body.get("input") or ""
        texts = cast("list[str]", given if isinstance(given, list) else [given])
        async with self.scheduler.slot(self._wish):
            await asyncio.sleep(self.delay_ms * len(texts) / 1000)
            data = [
                {
                    "embedding": normalised(vector_of(text, self.model.embedding_length)),
                    "index": index,
                    "object": "embedding",
                }
                for index, text in enumerate(texts)
            ]
            count = sum(len(text.split()) for text in texts)
            usage = {"prompt_tokens": count, "total_tokens": count}
            answer = {"model": self.model.name, "object": "list", "usage": usage, "data": data}
            await reply.whole(200, _json(answer), JSON)

    def _reason(self, answer: Answer) -> str:
        return self.lengthened("tool_calls" if answer.calls else answer.reason)

    def _answer_to(self, prompt: str, body: dict[str, Any]) -> Answer:
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        return answer_to(
            prompt,
            tokens=self.tokens,
            limit=limit,
            tools=body.get("tools") or (),
            as_json=bool(body.get("response_format")),
        )

    async def _whole(self, request: Request, reply: Reply, answer: Answer, shape: dict[str, Any]) -> None:
        if "embedding" in self.model.capabilities:
            text = "the current context does not support logits computation. skipping"
            await reply.whole(500, *self.error(request, 500, text))
            return
        async with self.scheduler.slot(self._wish):
            began = time.monotonic()
            async for _ in self._tokens(answer):
                pass
            timed = {"usage": _usage(answer), "timings": _timings(answer, time.monotonic() - began)}
            await reply.whole(200, _json(shape | self._head(answer) | timed), JSON)

    async def _stream(
        self, request: Request, reply: Reply, answer: Answer, opening: list[dict[str, Any]],
        shape: Callable[[str], dict[str, Any]], ending: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        head = self._head(answer)

        def event(body: dict[str, Any]) -> bytes:
            return b"data: " + _json(body | head) + b"\n\n"

        def broken(text: str) -> bytes:
            return b"error: " + _json({"code": 500, "message": text, "type": "server_error"}) + b"\n\n"

        async with self.scheduler.slot(self._wish):
            began = time.monotonic()
            opened = False
            async for token in self._tokens(answer):
                if not opened:
                    await self._open(reply, [event(each) for each in opening], broken)
                    opened = True
                await reply.line(event(shape(token)), broken)
            if not opened:
                await self._open(reply, [event(each) for each in opening], broken)
            if self.faults.big_final_bytes:
                await reply.line(event(shape("x" * self.faults.big_final_bytes)), broken)
            ending[-1] = ending[-1] | {"timings": _timings(answer, time.monotonic() - began)}
            for each in ending:
                await reply.line(event(each), broken)
            await reply.line(b"data: [DONE]\n\n", broken)
            await reply.end()

    async def _open(self, reply: Reply, opening: list[bytes], broken: Callable[[str], bytes]) -> None:
        await reply.open("text/event-stream")
        for each in opening:
            await reply.line(each, broken)

    async def _tokens(self, answer: Answer) -> AsyncIterator[str]:
        for token in answer.tokens:
            await asyncio.sleep(self.delay_ms / 1000)
            self.generated += 1
            self.bell.ring()
            yield token

    def _head(self, answer: Answer) -> dict[str, Any]:
        identity = hashlib.sha256(repr(answer).encode()).hexdigest()[:32]
        return {
            "created": int(time.time()), "id": f"chatcmpl-{identity}", "model": self.model.name,
            "system_fingerprint": "b0-unknown",
        }  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _calls(calls: tuple[ToolCall, ...]) -> list[dict[str, Any]]:
    return [
        {
            "index": index, "id": call.id, "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for index, call in enumerate(calls)
    ]  # fmt: skip


def _usage(answer: Answer) -> dict[str, Any]:
    said, heard = len(answer.tokens) + len(answer.calls), answer.prompt_tokens
    details = {"cached_tokens": 0}
    return {
        "completion_tokens": said,
        "prompt_tokens": heard,
        "total_tokens": said + heard,
        "prompt_tokens_details": details,
    }


def _timings(answer: Answer, generate_s: float) -> dict[str, float]:
    said, heard = len(answer.tokens) + len(answer.calls), answer.prompt_tokens
    generate_ms = max(1000 * generate_s, 0.001)
    return {
        "cache_n": 0, "prompt_n": heard, "prompt_ms": float(heard), "prompt_per_token_ms": 1.0,
        "prompt_per_second": 1000.0,
        "predicted_n": said, "predicted_ms": generate_ms, "predicted_per_token_ms": generate_ms / max(said, 1),
        "predicted_per_second": 1000 * said / generate_ms,
    }  # fmt: skip


async def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fakes.openai_server", description="A fake llama.cpp server; prints its URL."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--model", default="smollm2", help="the one model that it serves")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings instead of chat")
    parser.add_argument("--tokens", type=int, default=8, help="tokens in an answer")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="time for each token")
    parser.add_argument("--num-parallel", type=int, default=1, help="slots")
    async with FakeOpenAI(**vars(parser.parse_args())) as node:
        print(node.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
