"""Equal questions get equal answers from every fake, so that a test can tell a repeated token from a new one."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast


class ToolCall(NamedTuple):
    """One function that the model wants called."""

    id: str
    name: str
    arguments: dict[str, Any]


class Answer(NamedTuple):
    """Everything a fake model will say, token by token."""

    thinking: tuple[str, ...]
    tokens: tuple[str, ...]
    calls: tuple[ToolCall, ...]
    reason: str
    """`stop`, or `length` when the limit cut it."""
    prompt_tokens: int


def answer_to(
    prompt: str,
    *,
    tokens: int,
    limit: int | None = None,
    tools: Sequence[Any] = (),
    think: bool = False,
    as_json: bool = False,
) -> Answer:
    """Echo the prompt's words over and over until there are `tokens` tokens, or `limit` if that is fewer.

    A tool is called when the prompt contains the name of its function, with the prompt as each required argument.
    """
    words = prompt.split() or ["nothing"]
    said = [words[i % len(words)] if i == 0 else f" {words[i % len(words)]}" for i in range(tokens)]
    if as_json:
        said = ['{"echo":', f' "{prompt.translate({34: None, 92: None})}"', "}"]
    calls = tuple(_call(tool["function"], prompt) for tool in tools if tool["function"]["name"] in prompt)
    if calls:
        said = []
    cut = limit is not None and 0 <= limit < len(said)
    return Answer(
        ("Let", " me", " see.") if think else (),
        tuple(said[:limit] if cut else said),
        calls,
        "length" if cut else "stop",
        len(words),
    )


def vector_of(text: str, length: int) -> list[float]:
    """A vector of that length, about 7 long as MiniLM's are before normalising; equal texts give equal vectors."""
    raw = hashlib.shake_128(text.encode()).digest(2 * length)
    numbers = [int.from_bytes(raw[i : i + 2], "little") / 32767.5 - 1 for i in range(0, len(raw), 2)]
    return [7 * number / math.hypot(*numbers) for number in numbers]


def normalised(vector: Sequence[float]) -> list[float]:
    """The vector, one long."""
    length = math.hypot(*vector)
    return [number / length for number in vector]


def part_of(body: dict[str, Any], name: str) -> dict[str, Any]:
    """The object under that name in a request; empty where it is absent or null."""
    return body.get(name) or {}


def text_of(content: Any) -> str:
    """The text of an OpenAI message: a string, or the text parts of a list."""
    if isinstance(content, list):
        parts = cast("list[dict[str, Any]]", content)
        return " ".join(part["text"] for part in parts if part.get("type") == "text")
    return content or ""


def _call(function: dict[str, Any], prompt: str) -> ToolCall:
    required = function.get("parameters", {}).get("required", [])
    identity = hashlib.sha256(f"{function['name']} {prompt}".encode()).hexdigest()[:8]
    return ToolCall(f"call_{identity}", function["name"], dict.fromkeys(required, prompt))
