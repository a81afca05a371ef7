"""Ollama reads embedding models as GGUF only, and the package index carries MiniLM as safetensors only.

Both formats are a header and raw tensors, so the standard library is enough as long as the numbers stay 32-bit floats.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

ALIGNMENT = 32
"""GGUF's default: each tensor starts at a multiple of it, counted from the start of the data."""

_GLOBAL_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
_LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


class Tensor(NamedTuple):
    """One tensor under its GGUF name; `shape` is outermost first, as safetensors has it."""

    name: str
    shape: list[int]
    raw: memoryview


def convert(source: Path, target: Path) -> None:
    """Write the sentence transformer in the folder `source` to `target` as one GGUF file of 32-bit floats."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text("utf-8"))
    words = (source / "vocab.txt").read_text("utf-8").split("\n")[: config["vocab_size"]]
    fields = _describe(config) + _vocabulary(words)
    tensors = _tensors((source / "model.safetensors").read_bytes(), config["num_hidden_layers"])
    with target.open("wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields)) + b"".join(fields))
        offset = 0
        for tensor in tensors:
            # GGUF counts dimensions innermost first; type 0 is a 32-bit float.
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
            out.write(_text(tensor.name) + shape + struct.pack("<IQ", 0, offset))
            offset += len(tensor.raw) + -len(tensor.raw) % ALIGNMENT
        out.write(bytes(-out.tell() % ALIGNMENT))
        for tensor in tensors:
            out.write(tensor.raw)
            out.write(bytes(-len(tensor.raw) % ALIGNMENT))


def _describe(config: dict[str, Any]) -> list[bytes]:
    return [
        _string("general.architecture", "bert"),
        _string("general.name", "all-MiniLM-L6-v2"),
        _string("general.license", "apache-2.0"),
        _uint("general.file_type", 0),
        _uint("bert.block_count", config["num_hidden_layers"]),
        _uint("bert.context_length", config["max_position_embeddings"]),
        _uint("bert.embedding_length", config["hidden_size"]),
        _uint("bert.feed_forward_length", config["intermediate_size"]),
        _uint("bert.attention.head_count", config["num_attention_heads"]),
        _field("bert.attention.layer_norm_epsilon", 6, struct.pack("<f", config["layer_norm_eps"])),
        _field("bert.attention.causal", 7, b"\x00"),
        _uint("bert.pooling_type", 1),
    ]


def _vocabulary(words: list[str]) -> list[bytes]:
    """The word pieces as llama.cpp wants them: the start of a word is marked, not its continuation."""
    pieces: list[bytes] = []
    kinds: list[int] = []
    for word in words:
        special = word.startswith("[") and word.endswith("]")
        kinds.append(3 if special else 1)
        plain = word if special else word.removeprefix("##") if word.startswith("##") else "\u2581" + word
        pieces.append(_text(plain))
    # "seperator" is how the format spells it.
    ids = {
        "bos": "[CLS]",
        "eos": "[SEP]",
        "unknown": "[UNK]",
        "seperator": "[SEP]",
        "padding": "[PAD]",
        "mask": "[MASK]",
    }
    return [
        _string("tokenizer.ggml.model", "bert"),
        _string("tokenizer.ggml.pre", "default"),
        _field("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, len(pieces)) + b"".join(pieces)),
        _field("tokenizer.ggml.token_type", 9, struct.pack(f"<IQ{len(kinds)}i", 5, len(kinds), *kinds)),
        _uint("tokenizer.ggml.token_type_count", 2),
        *(_uint(f"tokenizer.ggml.{name}_token_id", words.index(word)) for name, word in ids.items()),
    ]


def _tensors(raw: bytes, layers: int) -> list[Tensor]:
    (length,) = struct.unpack_from("<Q", raw)
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    names = dict(_GLOBAL_NAMES)
    for layer in range(layers):
        for theirs, ours in _LAYER_NAMES.items():
            for part in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{theirs}.{part}"] = f"blk.{layer}.{ours}.{part}"
    data = memoryview(raw)[8 + length :]
    tensors: list[Tensor] = []
    for theirs, ours in names.items():
        entry = header[theirs]
        start, end = entry["data_offsets"]
        if entry["dtype"] != "F32" or end - start != 4 * math.prod(entry["shape"]):
            raise ValueError(f"{theirs} is not made of 32-bit floats")
        tensors.append(Tensor(ours, entry["shape"], data[start:end]))
    return tensors


def _field(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _string(key: str, value: str) -> bytes:
    return _field(key, 8, _text(value))


def _uint(key: str, value: int) -> bytes:
    return _field(key, 4, struct.pack("<I", value))


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw
