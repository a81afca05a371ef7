"""What the wire layer costs per request and per chunk, in microseconds of CPU (best of several rounds)."""

import json
import timeit
from collections.abc import Callable

from herd.wire.ending import Watch
from herd.wire.request import parse, stripped, with_model


def chat(size_bytes: int, *, image: bool = False) -> bytes:
    """Return a native chat body of about this size: turns of 400 characters, or one image."""
    turns = [{"role": "user", "content": "word " * 80} for _ in range(1 if image else max(1, size_bytes // 440))]
    if image:
        turns[0]["images"] = ["A" * size_bytes]  # type: ignore[assignment]
    return json.dumps({"model": "llama3.2:3b", "messages": turns, "options": {"num_ctx": 8192}}).encode()


def micros(call: Callable[[], object], *, number: int) -> float:
    """Return the best time of one call in microseconds."""
    return min(timeit.repeat(call, number=number, repeat=7)) / number * 1e6


def main() -> None:
    """Measure and print."""
    small, medium, large = chat(2_000), chat(100_000), chat(5_000_000, image=True)
    for label, body, number in (("2 KB", small, 5000), ("100 KB", medium, 300), ("5 MB image", large, 5)):
        print(f"parse        {label:>10}  {micros(lambda b=body: parse('/api/chat', b), number=number):9.2f} us")
        print(f"stripped     {label:>10}  {micros(lambda b=body: stripped(b), number=number):9.2f} us")
        print(f"with_model   {label:>10}  {micros(lambda b=body: with_model(b, 'x'), number=number):9.2f} us")
    item = {"model": "llama3.2", "created_at": "2026-01-01T00:00:00Z", "message": {"content": " a"}, "done": False}
    line = json.dumps(item).encode() + b"\n"
    for dialect in ("ollama", "openai"):
        watch = Watch(dialect, "chat", streaming=True)
        print(f"watch chunk  {dialect:>10}  {micros(lambda w=watch: w.feed(line), number=20000):9.3f} us")
    end = Watch("ollama", "chat", streaming=True)
    end.feed(b'{"model":"x","message":{},"done":true,"done_reason":"stop","eval_count":5,"prompt_eval_count":7}\n')
    print(f"ending           ollama  {micros(end.ending, number=5000):9.2f} us")


if __name__ == "__main__":
    main()
