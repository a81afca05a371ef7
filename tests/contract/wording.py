"""What Ollama says has changed over the years; here are the differences, so that the tests need no `if`."""

from typing import Any

import msgspec

CHAT, TOOLS, EMBED = "smollm2:135m", "smollm2:tools", "all-minilm"

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
TOOL_FUNCTION: dict[str, Any] = {"name": "unheard_of", "description": "d", "parameters": NO_ARGUMENTS}

_TRY_PULLING = 'model "nope" not found, try pulling it first'


class Wording(msgspec.Struct, frozen=True, kw_only=True):
    """How one version of Ollama differs from the next. The defaults are today's (0.33)."""

    version: str
    errors: dict[str, tuple[int, str]] = {}
    """Status and text by the name of a case in `ERRORS`, where they differ from it."""
    wrong_method: tuple[int, str] = (405, "405 method not allowed")
    not_found_type: str = "not_found_error"
    """Type of a 404 under /v1."""
    bad_request_type: str = "invalid_request_error"
    """Type of a 400 under /v1 that comes from the handler and not from reading the body."""
    model_fields: frozenset[str] = frozenset({"capabilities"})
    """Fields of an entry in tags, beyond those that all versions have."""
    loaded_fields: frozenset[str] = frozenset({"context_length"})
    """Fields of an entry in ps, beyond those that all versions have."""
    capabilities: dict[str, set[str]] | None = msgspec.field(
        default_factory=lambda: {CHAT: {"completion"}, TOOLS: {"completion", "tools"}, EMBED: {"embedding"}}
    )
    """What show says that the models can do; None = it says nothing."""
    role_in_every_chunk: bool = False
    """Under /v1 chat streams, where today only the first chunk names the role."""
    finish_delta: dict[str, Any] = {}
    """The delta of the chunk that carries the finish reason."""
    base64_vectors: bool = True
    dimensions: bool = True
    """Whether embeddings can be asked for in base64, and shortened."""
    lax_names: bool = True
    """Whether names may have spaces around them and a `:local` suffix."""


TODAY = Wording(version="0.33.0")

_OLD_ERRORS = {
    "chat, malformed name": (400, "model is required"),
    "generate, malformed name": (404, "model 'a:b:c:d/' not found"),
    "embed, no model": (404, 'model "" not found, try pulling it first'),
    "chat, unknown model": (404, _TRY_PULLING),
    "show, unknown model": (404, "model 'nope' not found"),
    "v1 chat, unknown model": (404, _TRY_PULLING),
    "v1 embeddings, tokens": (400, "invalid input type"),
}
_STRING_IN_MESSAGES = (400, "json: cannot unmarshal number into Go struct field ChatRequest.messages of type string")
_OLD_DELTA = {"role": "assistant", "content": ""}

WORDINGS = {
    "fake": TODAY,
    "0.9.3": Wording(
        version="0.9.3",
        errors=_OLD_ERRORS
        | {"think": (400, f"registry.ollama.ai/library/{CHAT} does not support thinking")},
        not_found_type="api_error", bad_request_type="api_error", model_fields=frozenset(), loaded_fields=frozenset(),
        role_in_every_chunk=True, finish_delta=_OLD_DELTA, base64_vectors=False, dimensions=False, lax_names=False,
    ),
    "0.5.4": Wording(
        version="0.5.4-ipexllm-20250407",
        errors=_OLD_ERRORS
        | {"think": (200, ""), "a content that is a number": _STRING_IN_MESSAGES},
        wrong_method=(404, "404 page not found"),
        not_found_type="api_error", bad_request_type="api_error", model_fields=frozenset(), loaded_fields=frozenset(),
        capabilities=None, role_in_every_chunk=True, finish_delta=_OLD_DELTA, base64_vectors=False, dimensions=False,
        lax_names=False,
    ),
}  # fmt: skip


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """A request that gets an error today, with the status and the text."""

    path: str
    body: bytes | dict[str, Any]
    status: int
    text: str
    reading: bool = False
    """The error is found while reading the body; it comes from the web framework, which words it in its own way."""


_HI = [{"role": "user", "content": "hi"}]
_TOOL = {"type": "function", "function": TOOL_FUNCTION}


def _unreadable(path: str, go_type: str, empty: str) -> dict[str, Wrong]:
    number = f"json: cannot unmarshal number into Go struct field {go_type}.model of type string"
    bodies = {
        "empty": (b"", empty),
        "cut off": (b'{"model":', "unexpected EOF"),
        "not JSON": (b"hello", "invalid character 'h' looking for beginning of value"),
        "model a number": (b'{"model": 5}', number),
    }
    return {
        f"{path}, {name}": Wrong(path=path, body=body, status=400, text=text, reading=True)
        for name, (body, text) in bodies.items()
    }


ERRORS = {
    **_unreadable("/api/chat", "ChatRequest", "missing request body"),
    **_unreadable("/api/generate", "GenerateRequest", "missing request body"),
    **_unreadable("/api/embed", "EmbedRequest", "missing request body"),
    **_unreadable("/api/embeddings", "EmbeddingRequest", "missing request body"),
    **_unreadable("/api/show", "ShowRequest", "missing request body"),
    **_unreadable("/v1/chat/completions", "ChatCompletionRequest", "EOF"),
    **_unreadable("/v1/completions", "CompletionRequest", "EOF"),
    **_unreadable("/v1/embeddings", "EmbedRequest", "EOF"),
    "chat, no model": Wrong(path="/api/chat", body={}, status=400, text="model is required"),
    "generate, no model": Wrong(path="/api/generate", body={}, status=404, text="model '' not found"),
    "embed, no model": Wrong(path="/api/embed", body={}, status=404, text="model '' not found"),
    "embeddings, no model": Wrong(path="/api/embeddings", body={}, status=400, text="model is required"),
    "show, no model": Wrong(path="/api/show", body={}, status=400, text="model is required"),
    "v1 chat, no model": Wrong(
        path="/v1/chat/completions", body={"messages": _HI}, status=400, text="model is required"
    ),
    "v1 chat, no messages": Wrong(
        path="/v1/chat/completions", body={"model": CHAT}, status=400, text="[] is too short - 'messages'", reading=True
    ),
    "v1 completions, no model": Wrong(
        path="/v1/completions", body={"prompt": "a"}, status=404, text="model '' not found"
    ),
    "chat, unknown model": Wrong(
        path="/api/chat", body={"model": "nope", "messages": _HI}, status=404, text="model 'nope' not found"
    ),
    "generate, unknown model": Wrong(
        path="/api/generate", body={"model": "nope", "prompt": "a"}, status=404, text="model 'nope' not found"
    ),
    "embed, unknown model": Wrong(
        path="/api/embed", body={"model": "nope", "input": "a"}, status=404, text=_TRY_PULLING
    ),
    "embeddings, unknown model": Wrong(
        path="/api/embeddings", body={"model": "nope", "prompt": "a"}, status=404, text=_TRY_PULLING
    ),
    "embeddings, other case": Wrong(
        path="/api/embeddings", body={"model": "ALL-minilm"}, status=404,
        text='model "ALL-minilm" not found, try pulling it first',
    ),
    "show, unknown model": Wrong(
        path="/api/show", body={"model": "nope"}, status=404, text="model 'nope:latest' not found"
    ),
    "v1 chat, unknown model": Wrong(
        path="/v1/chat/completions", body={"model": "nope", "messages": _HI, "stream": True}, status=404,
        text="model 'nope' not found",
    ),
    "v1 completions, unknown model": Wrong(
        path="/v1/completions", body={"model": "nope", "prompt": "a"}, status=404, text="model 'nope' not found"
    ),
    "v1 embeddings, unknown model": Wrong(
        path="/v1/embeddings", body={"model": "nope", "input": "a"}, status=404, text=_TRY_PULLING
    ),
    "v1 embeddings, no input": Wrong(
        path="/v1/embeddings", body={"model": EMBED}, status=400, text="invalid input", reading=True
    ),
    "v1 embeddings, empty list": Wrong(
        path="/v1/embeddings", body={"model": EMBED, "input": []}, status=400, text="invalid input", reading=True
    ),
    "v1 embeddings, tokens": Wrong(
        path="/v1/embeddings", body={"model": EMBED, "input": [1, 2]}, status=400, text="invalid input type"
    ),
    "embed, a number": Wrong(
        path="/api/embed", body={"model": EMBED, "input": 5}, status=400, text="invalid input type"
    ),
    "chat, malformed name": Wrong(
        path="/api/chat", body={"model": "a:b:c:d/", "messages": _HI}, status=400, text="invalid model name"
    ),
    "generate, malformed name": Wrong(
        path="/api/generate", body={"model": "a:b:c:d/", "prompt": "a"}, status=400, text="invalid model name"
    ),
    "chat with an embedding model": Wrong(
        path="/api/chat", body={"model": EMBED, "messages": _HI}, status=400, text=f'"{EMBED}" does not support chat'
    ),
    "generate with an embedding model": Wrong(
        path="/api/generate", body={"model": EMBED, "prompt": "a"}, status=400,
        text=f'"{EMBED}" does not support generate',
    ),
    "v1 chat with an embedding model": Wrong(
        path="/v1/chat/completions", body={"model": EMBED, "messages": _HI}, status=400,
        text=f'"{EMBED}" does not support chat',
    ),
    "tools": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "tools": [_TOOL]}, status=400,
        text=f"registry.ollama.ai/library/{CHAT} does not support tools",
    ),
    "v1 tools": Wrong(
        path="/v1/chat/completions", body={"model": CHAT, "messages": _HI, "tools": [_TOOL]}, status=400,
        text=f"registry.ollama.ai/library/{CHAT} does not support tools",
    ),
    "insert": Wrong(
        path="/api/generate", body={"model": CHAT, "prompt": "a", "suffix": "b"}, status=400,
        text=f"registry.ollama.ai/library/{CHAT} does not support insert",
    ),
    "think": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "think": True, "options": {"num_predict": 2}},
        status=400, text=f'"{CHAT}" does not support thinking',
    ),
    "option of the wrong type": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "options": {"num_ctx": "x"}}, status=500,
        text='option "num_ctx" must be of type integer',
    ),
    "keep_alive without a unit": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "keep_alive": "10"}, status=400,
        text='time: missing unit in duration "10"', reading=True,
    ),
    "keep_alive an object": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "keep_alive": {}}, status=400,
        text="Unsupported type: 'map[string]interface {}'", reading=True,
    ),
    "keep_alive a list": Wrong(
        path="/api/embed", body={"model": EMBED, "input": "a", "keep_alive": []}, status=400,
        text="Unsupported type: '[]interface {}'", reading=True,
    ),
    "keep_alive a truth": Wrong(
        path="/api/generate", body={"model": CHAT, "prompt": "a", "keep_alive": True}, status=400,
        text="Unsupported type: 'bool'", reading=True,
    ),
    "stream no truth": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "stream": "x"}, status=400,
        text="json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool", reading=True,
    ),
    "options no object": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "options": []}, status=400,
        text="json: cannot unmarshal array into Go struct field ChatRequest.options of type map[string]interface {}",
        reading=True,
    ),
    "tools no list": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": _HI, "tools": {}}, status=400,
        text="json: cannot unmarshal object into Go struct field ChatRequest.tools of type api.Tools", reading=True,
    ),
    "messages no list": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": "hi"}, status=400,
        text="json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        reading=True,
    ),
    "a message that is a number": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": [1]}, status=400,
        text="json: cannot unmarshal number into Go struct field ChatRequest.messages of type api.Alias", reading=True,
    ),
    "a content that is a number": Wrong(
        path="/api/chat", body={"model": CHAT, "messages": [{"role": "user", "content": 5}]}, status=400,
        text="json: cannot unmarshal number into Go struct field ChatRequest.messages.content of type string",
        reading=True,
    ),
    "v1 tools no list": Wrong(
        path="/v1/chat/completions", body={"model": CHAT, "messages": _HI, "tools": {}}, status=400,
        text="json: cannot unmarshal object into Go struct field ChatCompletionRequest.tools of type []api.Tool",
        reading=True,
    ),
    "v1 messages no list": Wrong(
        path="/v1/chat/completions", body={"model": CHAT, "messages": {}}, status=400,
        text="json: cannot unmarshal object into Go struct field ChatCompletionRequest.messages of type "
        "[]openai.Message",
        reading=True,
    ),
    "v1, a message that is a number": Wrong(
        path="/v1/chat/completions", body={"model": CHAT, "messages": [1]}, status=400,
        text="json: cannot unmarshal number into Go struct field ChatCompletionRequest.messages of type openai.Message",
        reading=True,
    ),
    "v1, no message": Wrong(
        path="/v1/chat/completions", body={"model": CHAT, "messages": [None]}, status=400,
        text="invalid message content type: <nil>", reading=True,
    ),
    "v1, a content that is a number": Wrong(
        path="/v1/chat/completions", body={"model": CHAT, "messages": [{"role": "user", "content": 5}]}, status=400,
        text="invalid message content type: float64", reading=True,
    ),
}  # fmt: skip
