"""What the wire layer costs per request and per chunk, in microseconds of CPU (best of several rounds)."""

import json
import timeit
from collections.abc import Callable

from herd.wire.ending import Watch, whole
from herd.wire.request import parse, stripped


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
    flood = b'{"model":"m","messages":[' + b",".join([b"{}"] * (64 * 1024 * 1024 // 3)) + b"]}"
    print(f"parse        64 MiB of {{}}  {micros(lambda: parse('/api/chat', flood), number=1):9.2f} us")
    item = {"model": "llama3.2", "created_at": "2026-01-01T00:00:00Z", "message": {"content": " a"}, "done": False}
    line = json.dumps(item).encode() + b"\n"
    for dialect in ("ollama", "openai"):
        watch = Watch(dialect, "chat", streaming=True)
        for label, chunk in (("a line", line), ("64 KB", (line * 1000)[:65536])):
            cost = micros(lambda w=watch, c=chunk: w.feed(c), number=20000)
            print(f"watch {label:>6}  {dialect:>10}  {cost:9.3f} us")
    answer = json.dumps({**item, "done": True, "done_reason": "stop", "eval_count": 5}).encode()
    print(f"whole answer     ollama  {micros(lambda: whole('ollama', 'chat', answer), number=5000):9.2f} us")
    end = Watch("ollama", "chat", streaming=True)
    end.feed(b'{"model":"x","message":{},"done":true,"done_reason":"stop","eval_count":5,"prompt_eval_count":7}\n')
    print(f"ending           ollama  {micros(end.ending, number=5000):9.2f} us")


if __name__ == "__main__":
    main()
