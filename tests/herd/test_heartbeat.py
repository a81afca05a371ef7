"""What agents send is read or refused by name, whoever wrote it and whatever it is."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from herd.errors import BadRequest
from herd.wire.heartbeat import BadHeartbeat, Engine, Heartbeat, Model, parse

PEER: dict[str, Any] = {
    "node_id": "mac-studio",
    "arch": "apple_silicon",
    "timestamp": 1767225600.25,
    "cpu": {"cores_physical": 24, "utilization_pct": 12.5},
    "memory": {
        "total_gb": 192.0, "used_gb": 80.0, "available_gb": 112.0, "pressure": "normal",
        "wired_gb": 5.5, "compressed_gb": 0.0, "swap_used_gb": 0.0, "swap_total_gb": 0.0,
    },
    "thermal": {"state": "unknown", "temperature_c": None, "source": ""},
    "disk": {"total_gb": 926.4, "used_gb": 300.0, "available_gb": 626.4},
    "ollama": {
        "models_loaded": [
            {"name": "llama3.2:3b", "size_gb": 4.0, "requests_active": 0, "parameter_size": "3.2B",
             "quantization": "Q4_K_M", "context_length": 4096, "runner": "llama", "digest": "a80c4f17acd5"}
        ],
        "models_available": ["llama3.2:3b", "nomic-embed-text:latest", "mlx:some-model"],
        "models_available_sizes": {"llama3.2:3b": 2.019, "nomic-embed-text:latest": 0.274},
        "models_available_meta": {
            "llama3.2:3b": {
                "modified_at": "2026-01-01T10:00:00.123456789-08:00", "digest": "a80c4f17acd5", "format": "gguf",
                "family": "llama", "families": ["llama"], "parameter_size": "3.2B", "quantization_level": "Q4_K_M",
                "parent_model": "", "capabilities": ["completion", "tools"],
            },
            "nomic-embed-text:latest": {"digest": "0a109f422b47", "families": None, "capabilities": ["embedding"]},
        },
        "max_loaded_models": 0, "num_parallel": 2, "requests_active": 0, "version": "0.12.3", "backend_clients": [],
    },
    "ollama_host": "http://192.168.1.20:11434",
    "lan_ip": "192.168.1.20",
    "draining": False,
    "capacity": {
        "mode": "learned_high", "ceiling_gb": 64.0, "availability_score": 0.9, "reason": "idle",
        "override_active": False, "learning_confidence": 0.5, "days_observed": 12,
    },
    "agent_version": "0.11.4",
    "process_memory": {"footprint_gb": 0.1, "children": []},
    "image": None, "image_port": 0, "transcription": None, "transcription_port": 0,
    "vision_embedding": None, "vision_embedding_status": {"backend_available": False, "cached_model_count": 0},
    "connection_failures": 0, "connection_failures_total": 3,
    "chip": "Apple M2 Ultra", "memory_bandwidth_gbps": 800.0, "mlx_servers": [], "mlx_bind_host": "127.0.0.1",
}  # fmt: skip


def body(**changes: Any) -> bytes:
    return json.dumps(PEER | changes).encode()


def test_the_body_of_the_peers_agent_is_read() -> None:
    heartbeat = parse(body())
    assert heartbeat.node_id == "mac-studio"
    assert heartbeat.ollama is not None
    assert heartbeat.ollama.models_loaded[0].context_length == 4096
    assert heartbeat.memory is not None
    assert heartbeat.memory.wired_gb == 5.5


def test_the_body_of_an_older_agent_is_read() -> None:
    ollama = {"models_loaded": [], "models_available": ["phi4:14b"], "requests_active": 0}
    heartbeat = parse(body(ollama=ollama, arch="apple_silicon", agent_version="0.6.1", capacity=None, disk=None))
    assert heartbeat.ollama is not None
    assert heartbeat.ollama.version is None
    assert heartbeat.ollama.models_available_sizes is None


def test_the_peers_farewell_needs_only_a_name() -> None:
    assert parse(b'{"node_id": "ash", "draining": true}').draining


def test_what_our_agent_builds_is_what_the_router_reads() -> None:
    engine = Engine(dialect="openai", name="llama.cpp", url="http://127.0.0.1:9", models=(Model(name="a"),), loaded=())
    sent = Heartbeat(node_id="ash", agent="herd", timestamp=5.5, engine=engine)
    assert parse(msgspec.json.encode(sent)) == sent


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"node_id": 7}, "node_id", "Expected `str`, got `int`"),
    ({"node_id": "a:b"}, "node_id", "matching regex"),
    ({"node_id": ""}, "node_id", "matching regex"),
    ({"node_id": "a" * 65}, "node_id", "matching regex"),
    ({"node_id": "ash\n"}, "node_id", "matching regex"),
    ({"cpu": []}, "cpu", "Expected `object | null`, got `array`"),
    ({"cpu": {"cores_physical": -1}}, "cpu.cores_physical", ">= 0"),
    ({"memory": {"total_gb": "much"}}, "memory.total_gb", "Expected `float`"),
    ({"memory": {"pressure": "nominal"}}, "memory.pressure", "Invalid enum value"),
    ({"timestamp": -1}, "timestamp", ">= 0"),
    ({"timestamp": 1e300}, "timestamp", "<= "),
    ({"draining": "yes"}, "draining", "Expected `bool`"),
    ({"ollama": None}, "ollama", "missing"),
    ({"ollama": {"models_available": [5]}}, "ollama.models_available[0]", "Expected `str`"),
    ({"ollama": {"models_available": ["x"] * 2001}}, "ollama.models_available", "length <= 2000"),
    ({"ollama": {"models_available": ["a\u0000b"]}}, "ollama.models_available[0]", "matching regex"),
    ({"ollama": {"models_available_sizes": {"a": "b"}}}, "ollama.models_available_sizes[...]", "Expected `float`"),
    ({"ollama": {"models_loaded": [{}]}}, "ollama.models_loaded[0].name", "missing"),
    ({"engine": {"dialect": "grpc", "name": "", "url": "x"}}, "engine.dialect", "Invalid enum value"),
    ({"engine": {"dialect": "ollama", "name": ""}}, "engine.url", "missing"),
    ({"engine": {"dialect": "ollama", "name": "", "url": "ftp://x"}}, "engine.url", "expected http://host:port"),
    ({"ollama_host": "file:///etc/passwd"}, "ollama_host", "expected http://host:port"),
    ({"ollama_host": "http://user:secret@x:1"}, "ollama_host", "expected http://host:port"),
    ({"ollama_host": "https://gpu.example"}, "ollama_host", "plain http"),
    ({"ollama_host": "http://ünï.local:1"}, "ollama_host", "ASCII"),
    ({"ollama_host": "http://127.0.0.1:1/ä"}, "ollama_host", "ASCII"),
    ({"ollama_host": "http://x:\uff11"}, "ollama_host", "expected http://host:port"),
    ({"ollama_host": "http://x:99999"}, "ollama_host", "expected http://host:port"),
    ({"ollama_host": "http://x:1/a b"}, "ollama_host", "spaces"),
    ({"ollama_host": "http://[::1"}, "ollama_host", "expected http://host:port"),
]


@pytest.mark.parametrize(("changes", "field", "expected"), WRONG)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(BadHeartbeat) as caught:
        parse(body(**changes))
    assert caught.value.field == field
    assert field in caught.value.message
    assert expected in caught.value.message


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadHeartbeat) as caught:
        parse(body(ollama_host="http://user:secret@x:1"))
    assert caught.value.field == "ollama_host"
    assert "password" in caught.value.message
    assert "secret" not in caught.value.message


def test_a_missing_name_is_named() -> None:
    with pytest.raises(BadHeartbeat) as caught:
        parse(b"{}")
    assert caught.value.field == "node_id"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"null", b"{", b"\xff", b'{"node_id": "\xff"}', b'{"node_id": NaN}', b'{"timestamp": 1e999}',
        b'{"x": ' + b"[" * 100_000, b'{"node_id": "\\ud800"}', b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_what_is_no_heartbeat_at_all_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(raw)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    raw = body(memory={"total_gb": 123454321.0}).replace(b"123454321.0", number.encode())
    with pytest.raises(BadRequest):
        parse(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(sorted([*PEER, "engine", "agent", "leaving"]))


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@example(b'{"node_id":"a","draining":true}')
def test_any_bytes_are_a_heartbeat_or_refused(raw: bytes) -> None:
    read_or_refused(raw)


@given(st.dictionaries(fields, json_values, max_size=4), st.sampled_from(["", "ollama", "memory", "capacity"]))
def test_a_real_body_with_any_part_replaced_is_a_heartbeat_or_refused(changes: dict[str, Any], inside: str) -> None:
    read_or_refused(body(**({inside: {**PEER[inside], **changes}} if inside else changes)))


@given(json_values)
def test_unknown_fields_change_nothing(value: Any) -> None:
    extra = {"x": str(value) if "Infinity" in json.dumps(value) or "NaN" in json.dumps(value) else value}
    assert parse(body(**extra, ollama={**PEER["ollama"], **extra})) == parse(body())


def read_or_refused(raw: bytes) -> None:
    try:
        heartbeat = parse(raw)
    except BadRequest:
        return
    assert parse(msgspec.json.encode(heartbeat)) == heartbeat
