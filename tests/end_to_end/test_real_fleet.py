"""The whole of it with nothing faked: a router, its agents, real engines and the clients that people use."""

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ollama
import openai
import psutil
import pytest

from herd.errors import StartupError
from herd.node.engines import fetch
from tests.contract.wording import ERRORS, Wrong
from tests.end_to_end.agents import Watched, agent, free_port, herd, lines_with, until, watched_router
from tests.engines.fixtures import ENGINE_TIMEOUT_S, unavailable
from tests.engines.get_ollama import EngineUnavailable, get_ollama, get_weights, once
from tests.engines.real_ollama import CHAT_MODEL, EMBED_MODEL, RealOllama

pytestmark = [pytest.mark.engine, pytest.mark.timeout(ENGINE_TIMEOUT_S)]

#: Nodes by name, each with a version of Ollama; its models are also there under a name that only this node has.
VERSIONS = {"new": "0.9.3", "old": "0.5.4"}

HI = [{"role": "user", "content": "Say hi to the people here."}]
SHORT: dict[str, Any] = {"num_predict": 8, "temperature": 0, "seed": 1}
WAIT_S = 120.0


def chat_on(node: str) -> str:
    return f"{node}-chat:135m"


def embed_on(node: str) -> str:
    return f"{node}-embed:latest"


class Fleet(NamedTuple):
    """Two machines with Ollama behind one router."""

    router: Watched
    nodes: dict[str, RealOllama]

    def both(self, name: str, path: str, asked: bytes | dict[str, Any]) -> tuple[httpx.Response, httpx.Response]:
        """Ask the same of the router and of one node."""
        content = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        return (
            self.router.http.post(path, content=content, timeout=WAIT_S),
            httpx.post(self.nodes[name].url + path, content=content, timeout=WAIT_S, trust_env=False),
        )


@pytest.fixture(scope="module", name="fleet")
def make_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        try:
            nodes = {name: stack.enter_context(with_own_names(version)) for name, version in VERSIONS.items()}
        except EngineUnavailable as error:
            unavailable(error)
        for name, node in nodes.items():
            for model, alias in ((CHAT_MODEL, chat_on(name)), (EMBED_MODEL, embed_on(name))):
                copied = {"source": model, "destination": alias}
                httpx.post(f"{node.url}/api/copy", json=copied, trust_env=False).raise_for_status()
        router = stack.enter_context(watched_router(home))
        for name, node in nodes.items():
            stack.enter_context(agent(home, name, router_url=router.url, ollama=node.url))
        for name in nodes:
            router.wait_for(name)
        yield Fleet(router, nodes)
        assert router.router.stop() == 0
        proven(home)  # whatever the tests above have done


def with_own_names(version: str) -> RealOllama:
    # On a port that is known before, as everywhere but in tests, so that its agent can tell which process it is.
    return RealOllama(version, own_models=True, environment={"OLLAMA_HOST": f"127.0.0.1:{free_port()}"})


def proven(home: Path) -> int:
    """Let the commands that a user has prove a log, and return how many decisions they asked again."""
    verified = herd(home, "events", "verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "A rebuild equals what is kept." in verified.stdout
    replayed = herd(home, "replay", "verify")
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert "Every recorded decision comes out the same, bit for bit." in replayed.stdout
    report = json.loads(herd(home, "replay", "verify", "--json").stdout)
    assert report["identical"] == report["decisions"] > 0
    assert report["differing"] == 0
    return report["decisions"]


@pytest.fixture(params=list(VERSIONS), name="node")
def each_node(request: pytest.FixtureRequest) -> str:
    return request.param


# --- what a client gets through the router is what the node says ----------------------------------------------------

_MASKS = (
    (re.compile(rb'"created_at":"[^"]+"'), b'"created_at":"then"'),
    (re.compile(rb'"created":\d+'), b'"created":0'),
    (re.compile(rb'"id":"(chatcmpl|cmpl)-\d+"'), rb'"id":"\1-0"'),
    (re.compile(rb'"((?:total|load|prompt_eval|eval)_duration)":\d+'), rb'"\1":0'),
)


def masked(answer: httpx.Response) -> tuple[int, str, bytes]:
    """Return status, type and bytes of an answer, without what differs each time."""
    body = answer.content
    for pattern, instead in _MASKS:
        body = pattern.sub(instead, body)
    return answer.status_code, answer.headers["content-type"], body


#: Path and body by what they ask; `MODEL` and `EMBED` stand for the names that only one node has.
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat, streamed": ("/api/chat", {"model": "CHAT", "messages": HI, "options": SHORT}),
    "chat": ("/api/chat", {"model": "CHAT", "messages": HI, "options": SHORT, "stream": False}),
    "generate, streamed": ("/api/generate", {"model": "CHAT", "prompt": "Hi", "options": SHORT}),
    "generate": ("/api/generate", {"model": "CHAT", "prompt": "Hi", "options": SHORT, "stream": False}),
    "JSON by a schema": (
        "/api/chat",
        {
            "model": "CHAT", "messages": HI, "stream": False, "options": SHORT | {"num_predict": 40},
            "format": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
        },
    ),
    "load": ("/api/generate", {"model": "CHAT"}),
    "load by chat": ("/api/chat", {"model": "CHAT", "messages": []}),
    "embed": ("/api/embed", {"model": "EMBED", "input": "a house"}),
    "embed, many": ("/api/embed", {"model": "EMBED", "input": ["a house", "a home", "the number four"]}),
    "embed nothing": ("/api/embed", {"model": "EMBED", "input": []}),
    "embeddings": ("/api/embeddings", {"model": "EMBED", "prompt": "a house"}),
    "v1 chat, streamed with usage": (
        "/v1/chat/completions",
        {
            "model": "CHAT", "messages": HI, "stream": True, "stream_options": {"include_usage": True},
            "max_tokens": 8, "temperature": 0, "seed": 1,
        },
    ),
    "v1 chat": ("/v1/chat/completions", {"model": "CHAT", "messages": HI, "max_tokens": 8, "temperature": 0}),
    "v1 completions": ("/v1/completions", {"model": "CHAT", "prompt": "Hi", "max_tokens": 8, "temperature": 0}),
    "v1 embeddings": ("/v1/embeddings", {"model": "EMBED", "input": ["a house", "a home"]}),
    "an option of the wrong type": ("/api/chat", {"model": "CHAT", "messages": HI, "options": {"num_ctx": "x"}}),
    "an unknown format": ("/api/chat", {"model": "CHAT", "messages": HI, "format": "xml", "stream": False}),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_an_answer_is_the_nodes_own_to_the_byte(fleet: Fleet, node: str, case: str) -> None:
    path, body = ASKED[case]
    asked = body | {"model": chat_on(node) if body["model"] == "CHAT" else embed_on(node)}
    fleet.both(node, path, asked)  # a prompt that is cached, and a model in memory, count differently
    answer, direct = fleet.both(node, path, asked)
    assert masked(answer) == masked(direct)
    assert answer.headers["x-fleet-node"] == node
    assert answer.headers["x-fleet-retries"] == "0"


#: What goes wrong before a node could be asked; the router answers it itself.
BEFORE_A_NODE = {
    name: wrong
    for name, wrong in ERRORS.items()
    if wrong.path != "/api/show" and (isinstance(wrong.body, bytes) or name.endswith((", no model", ", unknown model")))
}

_NOT_FOUND_TYPE = '"type":"not_found_error"'
_REQUEST_TYPE = '"type":"invalid_request_error"'

#: Where the router's words are not those of 0.9.3: a part of the body that only the router's has.
DIFFERENT = {
    # Said as Ollama says it since 0.12.
    "chat, unknown model": "model 'nope' not found",
    "embed, no model": "model '' not found",
    "v1 chat, unknown model": "model 'nope' not found",
    "v1 chat, no model": _REQUEST_TYPE,
    "v1 completions, no model": _NOT_FOUND_TYPE,
    "v1 completions, unknown model": _NOT_FOUND_TYPE,
    "v1 embeddings, unknown model": _NOT_FOUND_TYPE,
    # Ollama repeats its JSON library, names of its own types included.
    **{name: "invalid character 'h' at position 0" for name in BEFORE_A_NODE if name.endswith(", not JSON")},
    **{name: "model must be a string, not a number" for name in BEFORE_A_NODE if name.endswith(", model a number")},
}


def spelled(answer: httpx.Response, wrong: Wrong) -> tuple[int, str, bytes]:
    """Return an error without what Ollama's web framework, which answers unreadable bodies, does otherwise in /v1."""
    status, content_type, body = masked(answer)
    if wrong.reading and wrong.path.startswith("/v1/"):
        return status, content_type.removesuffix("; charset=utf-8"), body.rstrip(b"\n")
    return status, content_type, body


@pytest.mark.parametrize("case", BEFORE_A_NODE)
def test_an_error_of_the_router_is_worded_as_a_node_words_it(fleet: Fleet, case: str) -> None:
    wrong = BEFORE_A_NODE[case]
    answer, direct = fleet.both("new", wrong.path, wrong.body)
    assert answer.headers["x-request-id"]
    assert "x-fleet-node" not in answer.headers
    if case not in DIFFERENT:
        assert spelled(answer, wrong) == spelled(direct, wrong)
        return
    assert answer.status_code == direct.status_code == wrong.status
    assert DIFFERENT[case] in answer.text
    assert DIFFERENT[case] not in direct.text


def test_the_data_about_different_words_is_about_cases_that_exist() -> None:
    assert DIFFERENT.keys() <= BEFORE_A_NODE.keys()


# --- what the router makes of what its agents say -------------------------------------------------------------------


def test_a_model_is_asked_of_the_machine_that_has_it(fleet: Fleet, node: str) -> None:
    body = {"model": chat_on(node), "messages": HI, "options": SHORT, "stream": False}
    answers = [fleet.router.http.post("/api/chat", json=body, timeout=WAIT_S) for _ in range(5)]
    assert {answer.headers["x-fleet-node"] for answer in answers} == {node}
    assert {answer.json()["model"] for answer in answers} == {chat_on(node)}


def test_the_agents_tell_what_their_engines_are(fleet: Fleet, node: str) -> None:
    status = fleet.router.node(node)
    assert status["engine"]["version"].startswith(VERSIONS[node])
    assert status["engine"]["up"] is True
    assert status["ollama"]["num_parallel"] == 1  # read from the environment of the server's process
    assert chat_on(node) in status["ollama"]["models_available"]
    assert status["memory"]["total_gb"] > 0
    assert status["disk"]["total_gb"] > 0
    assert status["hardware"]["cores_physical"] > 0
    assert fleet.router.get("/api/version")["version"] == "0.5.4"


def test_what_is_in_memory_is_seen_and_what_was_unloaded_is_gone(fleet: Fleet, node: str) -> None:
    def loaded() -> dict[str, list[str]]:
        return {model["name"]: model["fleet_nodes"] for model in fleet.router.get("/api/ps")["models"]}

    fleet.router.http.post("/api/generate", json={"model": embed_on(node), "keep_alive": -1}, timeout=WAIT_S)
    fleet.router.http.post("/api/embed", json={"model": embed_on(node), "input": "a", "keep_alive": -1}, timeout=WAIT_S)
    # Its server names one of the names of these weights: that by which they were loaded.
    names = until(loaded, lambda names: any(node in nodes for nodes in names.values()))
    for name in [name for name, nodes in names.items() if node in nodes]:
        body = {"model": name, "keep_alive": 0}
        httpx.post(f"{fleet.nodes[node].url}/api/generate", json=body, timeout=WAIT_S, trust_env=False)
    until(loaded, lambda names: not any(node in nodes for nodes in names.values()))


def test_a_model_that_both_have_in_memory_is_served_by_both(fleet: Fleet) -> None:
    asked = {"model": CHAT_MODEL, "messages": HI, "options": SHORT | {"num_predict": 20}, "stream": False}
    for node, server in fleet.nodes.items():
        # Two names over the same weights share a runner, which is listed under the name that loaded it.
        unload = {"model": chat_on(node), "keep_alive": 0}
        httpx.post(f"{server.url}/api/generate", json=unload, timeout=WAIT_S, trust_env=False).raise_for_status()

        def listed(node: str = node, url: str = server.url) -> bool:
            httpx.post(f"{url}/api/chat", json=asked, timeout=WAIT_S, trust_env=False).raise_for_status()
            return CHAT_MODEL in [model["name"] for model in fleet.router.node(node)["ollama"]["models_loaded"]]

        until(listed)
    with ThreadPoolExecutor(4) as pool:
        assert served_by(fleet.router, "/api/chat", asked, pool) == {"new", "old"}


# --- the clients that people use ------------------------------------------------------------------------------------


def texts(client: Any, model: str) -> list[str]:
    return [part.message.content or "" for part in client.chat(model, HI, stream=True, options=SHORT)]


NATIVE_CALLS: dict[str, Callable[[Any, str, str], Any]] = {
    "chat": lambda client, chat, _embed: client.chat(chat, HI, options=SHORT).message.content,
    "chat, streamed": lambda client, chat, _embed: texts(client, chat),
    "generate": lambda client, chat, _embed: client.generate(chat, "Hi", options=SHORT).response,
    "generate, streamed": lambda client, chat, _embed: [
        part.response for part in client.generate(chat, "Hi", stream=True, options=SHORT)
    ],
    "load": lambda client, chat, _embed: client.generate(chat).done_reason,
    "embed": lambda client, _chat, embed: client.embed(embed, ["a house", "a home"]).embeddings,
    "embeddings": lambda client, _chat, embed: client.embeddings(embed, "a house").embedding,
    "chat with an unknown model": lambda client, _chat, _embed: client.chat("nope", HI),
    "chat with an unknown model, streamed": lambda client, _chat, _embed: list(client.chat("nope", HI, stream=True)),
    "embed with an unknown model": lambda client, _chat, _embed: client.embed("nope", "a"),
    "chat with an embedding model": lambda client, _chat, embed: client.chat(embed, HI),
    "tools for a model without": lambda client, chat, _embed: client.chat(chat, HI, tools=[len]),
    "an option of the wrong type": lambda client, chat, _embed: client.chat(chat, HI, options={"num_ctx": "x"}),
}

OPENAI_CALLS: dict[str, Callable[[Any, str, str], Any]] = {
    "chat": lambda client, chat, _embed: client.chat.completions.create(
        model=chat, messages=HI, max_tokens=8, temperature=0
    ).choices[0].message.content,
    "chat, streamed": lambda client, chat, _embed: [
        (part.choices[0].delta.content if part.choices else part.usage and part.usage.completion_tokens)
        for part in client.chat.completions.create(
            model=chat, messages=HI, max_tokens=8, temperature=0,
            stream=True, stream_options={"include_usage": True},
        )
    ],
    "completions": lambda client, chat, _embed: client.completions.create(
        model=chat, prompt="Hi", max_tokens=8, temperature=0
    ).choices[0].text,
    "embeddings": lambda client, _chat, embed: [
        vector.embedding for vector in client.embeddings.create(model=embed, input=["a house", "a home"]).data
    ],
    "an unknown model": lambda client, _chat, _embed: client.chat.completions.create(
        model="nope", messages=HI
    ),
    "an unknown model, streamed": lambda client, _chat, _embed: client.chat.completions.create(
        model="nope", messages=HI, stream=True
    ),
    "embeddings of an unknown model": lambda client, _chat, _embed: client.embeddings.create(model="nope", input="a"),
    "chat with an embedding model": lambda client, _chat, embed: client.chat.completions.create(
        model=embed, messages=HI
    ),
}  # fmt: skip


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the class and the status of the error that it raises."""
    try:
        return call()
    except (ollama.ResponseError, openai.APIStatusError) as error:
        return type(error).__name__, error.status_code


def as_ollama(url: str, call: Callable[[Any], Any]) -> Any:
    client: Any = ollama.Client(url, timeout=WAIT_S, trust_env=False)
    with closing(client):
        return outcome(lambda: call(client))


def as_openai(url: str, call: Callable[[Any], Any]) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=WAIT_S) as client:
        return outcome(lambda: call(client))


@pytest.mark.parametrize("case", NATIVE_CALLS)
def test_the_ollama_client_sees_one_ollama(fleet: Fleet, node: str, case: str) -> None:
    def call(client: Any) -> Any:
        return NATIVE_CALLS[case](client, chat_on(node), embed_on(node))

    as_ollama(fleet.router.url, call)
    seen = as_ollama(fleet.router.url, call)
    assert seen == as_ollama(fleet.nodes[node].url, call)
    assert seen


@pytest.mark.parametrize("case", OPENAI_CALLS)
def test_the_openai_client_sees_one_ollama(fleet: Fleet, node: str, case: str) -> None:
    def call(client: Any) -> Any:
        return OPENAI_CALLS[case](client, chat_on(node), embed_on(node))

    as_openai(fleet.router.url, call)
    seen = as_openai(fleet.router.url, call)
    assert seen == as_openai(fleet.nodes[node].url, call)
    assert seen


def test_the_clients_list_the_models_of_all_machines_once(fleet: Fleet) -> None:
    shared = {CHAT_MODEL, EMBED_MODEL, "smollm2:tools"}
    everything = shared | {name(node) for name in (chat_on, embed_on) for node in VERSIONS}
    listed = as_ollama(fleet.router.url, lambda client: client.list().models)
    assert sorted(model.model for model in listed) == sorted(everything)
    assert all(model.size > 10**7 and len(model.digest) == 64 and model.details.family for model in listed)
    assert [model.modified_at for model in listed] == sorted((model.modified_at for model in listed), reverse=True)
    by_openai = as_openai(fleet.router.url, lambda client: [model.id for model in client.models.list()])
    assert by_openai == sorted(everything)

    as_ollama(fleet.router.url, lambda client: client.chat(chat_on("new"), HI, options=SHORT, keep_alive=-1))
    in_memory = until(lambda: as_ollama(fleet.router.url, lambda client: client.ps().models))
    assert all(model.size > 10**7 and model.expires_at for model in in_memory)


def by_command(url: str, home: Path, *arguments: str) -> str:
    """Return what the `ollama` command prints."""
    try:
        program = get_ollama("0.9.3")
    except EngineUnavailable as error:
        unavailable(error)
    done = subprocess.run(
        [program, *arguments], env={"HOME": str(home), "OLLAMA_HOST": url},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_ollama_command_sees_one_ollama(fleet: Fleet, tmp_path: Path) -> None:
    url = fleet.router.url
    listed = by_command(url, tmp_path, "list").splitlines()
    assert {line.split()[0] for line in listed[1:]} >= {CHAT_MODEL, chat_on("new"), chat_on("old"), embed_on("old")}
    as_ollama(url, lambda client: client.chat(CHAT_MODEL, HI, options=SHORT))
    shown = until(lambda: by_command(url, tmp_path, "ps").splitlines()[1:])
    assert all(("CPU" in line and "from now" in line) or "Forever" in line for line in shown)
    assert "0.5.4" in by_command(url, tmp_path, "--version")


STORY = {"prompt": "Write a very long story about a fleet of ships.", "options": {"temperature": 0}}


def test_a_client_that_leaves_a_stream_frees_the_slot(fleet: Fleet, node: str) -> None:
    request = left_alone(fleet.router, chat_on(node))
    body = {"model": chat_on(node), "messages": HI, "options": SHORT, "stream": False}
    answer = fleet.router.http.post("/api/chat", json=body, timeout=WAIT_S)
    assert (answer.status_code, answer.headers["x-fleet-node"]) == (200, node)
    traces = fleet.router.get("/dashboard/api/traces", limit=5)["traces"]
    assert [trace["status"] for trace in traces if trace["request_id"] == request] == ["client_disconnected"]


def left_alone(router: Watched, model: str) -> str:
    """Let a client leave its stream after the first line; return the request's id when the router has let go of it."""
    with (
        httpx.Client(base_url=router.url, timeout=WAIT_S, trust_env=False) as client,
        client.stream("POST", "/api/generate", json={"model": model, **STORY}) as answer,
    ):
        lines = answer.iter_lines()  # kept: the client hangs up when it is forgotten
        next(lines)
        assert router.get("/fleet/queue")["in_flight"] == 1
    until(lambda: router.get("/fleet/queue"), lambda queue: queue["in_flight"] == 0)
    return answer.headers["x-request-id"]


# --- what is left of it ---------------------------------------------------------------------------------------------

#: As they stand in the documentation that users have.
SLOWEST = (
    'sqlite3 ~/.fleet-manager/latency.db "SELECT model, node_id, latency_ms/1000.0 as secs FROM request_traces '
    "WHERE status='completed' ORDER BY latency_ms DESC LIMIT 10\""
)
FAILURES = (
    'sqlite3 ~/.fleet-manager/latency.db "SELECT request_id, model, status, error_message FROM request_traces '
    "WHERE status='failed' ORDER BY timestamp DESC LIMIT 10\""
)


def shell(home: Path, command: str) -> list[str]:
    done = subprocess.run(
        ["sh", "-c", command], env={"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_what_happened_is_a_row_and_the_log_proves_every_decision(fleet: Fleet, node: str) -> None:
    http = fleet.router.http
    good = http.post(
        "/api/chat", timeout=WAIT_S,
        json={"model": chat_on(node), "messages": HI, "options": SHORT, "stream": False, "metadata": {"tags": ["e2e"]}},
    )  # fmt: skip
    missing = http.post("/v1/chat/completions", json={"model": "nope", "messages": HI})
    refused = http.post("/api/chat", json={"model": chat_on(node), "messages": HI, "options": {"num_ctx": "x"}})
    ids = [answer.headers["x-request-id"] for answer in (good, missing, refused)]
    fleet.router.get("/dashboard/api/traces", limit=1)  # returns when all of them are stored

    home = fleet.router.home
    connection = sqlite3.connect(home / ".fleet-manager" / "latency.db")
    try:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM request_traces WHERE request_id = ?"
        rows = [dict(connection.execute(query, (request,)).fetchone()) for request in ids]
    finally:
        connection.close()
    assert [row["status"] for row in rows] == ["completed", "failed", "failed"]
    assert [row["node_id"] for row in rows] == [node, "", node]
    assert [row["model"] for row in rows] == [chat_on(node), "nope:latest", chat_on(node)]
    assert rows[0]["completion_tokens"] == good.json()["eval_count"]
    assert rows[0]["prompt_tokens"] == good.json()["prompt_eval_count"]
    assert rows[0]["latency_ms"] > 0
    assert rows[1]["error_message"] == "model 'nope' not found"
    assert rows[2]["error_message"] == 'option "num_ctx" must be of type integer'

    if shutil.which("sqlite3"):
        assert f"{ids[2]}|{chat_on(node)}|failed|{rows[2]['error_message']}" in shell(home, FAILURES)
        assert all(re.fullmatch(r"[^|]+\|(new|old)\|\d+\.\d+", line) for line in shell(home, SLOWEST))
    shown = json.loads(herd(home, "traces", "--json", "--data-dir", str(home / ".fleet-manager")).stdout)["traces"]
    assert set(ids) <= {trace["request_id"] for trace in shown}
    assert proven(home) >= 3


def test_the_log_file_of_the_router_is_made_of_json_lines(fleet: Fleet) -> None:
    body = {"model": chat_on("new"), "messages": HI, "options": {"num_ctx": "x"}}
    request = fleet.router.http.post("/api/chat", json=body).headers["x-request-id"]
    told = until(lambda: lines_with(fleet.router.log_lines(), request))
    about = {"request_id": request, "node_id": "new", "model": chat_on("new")}
    assert all(about.items() <= json.loads(line).items() for line in told)
    assert all(
        json.loads(line).keys() >= {"ts", "level", "logger", "msg"} for line in fleet.router.log_lines().splitlines()
    )


# --- a machine without Ollama ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="tiny")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A router with one node, `tiny`, whose agent brought llama.cpp."""
    home = tmp_path_factory.mktemp("tiny")
    try:
        provide_engine(home / "tiny")
    except EngineUnavailable as error:
        unavailable(error)
    with (
        watched_router(home) as router,
        agent(home, "tiny", router_url=router.url, engine="embedded"),
    ):
        router.wait_for("tiny", up=True)
        yield router
        assert router.router.stop() == 0
        proven(home)


def provide_engine(home: Path) -> None:
    """Put into an agent's data directory what it would fetch, fetched once for this machine by the agent's own code.

    Raises EngineUnavailable.
    """

    def make(folder: Path) -> None:
        try:
            asyncio.run(fetch.library(folder))
        except StartupError as error:
            raise EngineUnavailable(error.message) from error

    (home / "models").mkdir(parents=True)
    (home / "models" / fetch.SMOLLM2.file).symlink_to(get_weights() / "smollm2-135m.gguf")
    library = once(f"llama-cpp-{fetch.engine_version()}", make)
    if (library / "engines").is_dir():  # else it is installed in this environment
        (home / "engines").symlink_to(library / "engines")


def test_a_machine_without_ollama_serves_the_ollama_client(tiny: Watched) -> None:
    def call(client: Any) -> Any:
        return (
            list(client.chat(CHAT_MODEL, HI, stream=True, options=SHORT)),
            client.chat(CHAT_MODEL, HI, options=SHORT),
            list(client.generate(CHAT_MODEL, "Hi", stream=True, options=SHORT)),
            client.generate(CHAT_MODEL, "Hi", options=SHORT),
        )

    parts, whole, pieces, generated = as_ollama(tiny.url, call)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert "".join(piece.response for piece in pieces) == generated.response
    for last in (parts[-1], whole, generated, pieces[-1]):
        assert (last.model, last.done_reason, last.eval_count) == (CHAT_MODEL, "length", 8)
        assert last.prompt_eval_count
        assert last.total_duration
        assert last.eval_duration


def test_a_machine_without_ollama_serves_the_openai_client(tiny: Watched) -> None:
    def call(client: Any) -> Any:
        return OPENAI_CALLS["chat, streamed"](client, CHAT_MODEL, ""), OPENAI_CALLS["chat"](client, CHAT_MODEL, "")

    streamed, whole = as_openai(tiny.url, call)
    assert streamed[-1] == 8
    assert "".join(part or "" for part in streamed[:-1]) == whole


def test_options_count_for_llama_cpp_too(tiny: Watched) -> None:
    def said(**options: Any) -> str:
        asked = {"num_predict": 12, **options}
        return as_ollama(tiny.url, lambda client: client.chat(CHAT_MODEL, HI, options=asked).message.content)

    assert said(temperature=0) == said(temperature=0)
    assert said(temperature=5, top_k=0, top_p=1, seed=3) == said(temperature=5, top_k=0, top_p=1, seed=3)
    assert said(temperature=5, top_k=0, top_p=1, seed=3) != said(temperature=5, top_k=0, top_p=1, seed=4)
    assert said(temperature=0, stop=["e"]) == said(temperature=0).partition("e")[0]


def test_llama_cpp_writes_json_by_a_schema(tiny: Watched) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    options = SHORT | {"num_predict": 60}
    answer = as_ollama(tiny.url, lambda client: client.chat(CHAT_MODEL, HI, format=schema, options=options))
    assert isinstance(json.loads(answer.message.content)["a"], bool)


def test_loading_a_model_that_is_always_loaded_is_answered(tiny: Watched) -> None:
    loaded = tiny.http.post("/api/generate", json={"model": CHAT_MODEL})
    by_chat = tiny.http.post("/api/chat", json={"model": CHAT_MODEL, "messages": []})
    for answer in (loaded, by_chat):
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert (answer.json()["done"], answer.json()["done_reason"]) == (True, "load")


def test_the_fleet_says_what_answers_on_a_machine_without_ollama(tiny: Watched) -> None:
    node = tiny.node("tiny")
    assert node["engine"]["name"] == "llama.cpp"
    assert (node["engine"]["dialect"], node["engine"]["up"]) == ("openai", True)
    assert node["ollama"]["models_available"] == [CHAT_MODEL]
    (listed,) = as_ollama(tiny.url, lambda client: client.list().models)
    assert (listed.model, listed.size, listed.digest) == (CHAT_MODEL, fetch.SMOLLM2.size_bytes, fetch.SMOLLM2.sha256)
    shown = herd(tiny.home, "status", "--url", tiny.url)
    assert shown.returncode == 0
    assert f"llama.cpp {fetch.engine_version()}" in shown.stdout


def test_errors_of_a_translated_node_reach_the_client_as_ollamas(tiny: Watched) -> None:
    def embed(client: Any) -> Any:
        return client.embed(CHAT_MODEL, "a")

    assert as_ollama(tiny.url, lambda client: client.chat("nope", HI)) == ("ResponseError", 404)
    # Ollama makes vectors with any model, so one that is away leaves hope; a llama.cpp without them leaves none.
    away = {node["node_id"] for node in tiny.get("/fleet/status")["nodes"]} - {"tiny"}
    assert as_ollama(tiny.url, embed) == ("ResponseError", 503 if away else 400)
    wrong = {"model": CHAT_MODEL, "messages": HI, "format": "xml"}
    answer = tiny.http.post("/api/chat", json=wrong)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("invalid format")
    pictured = tiny.http.post("/api/generate", json={"model": CHAT_MODEL, "prompt": "Hi", "images": ["aGk="]})
    assert pictured.status_code == 400
    assert pictured.json() == {"error": f"registry.ollama.ai/library/{CHAT_MODEL} does not support vision"}


def test_a_model_that_never_leaves_memory_is_listed_so(tiny: Watched, tmp_path: Path) -> None:
    (loaded,) = as_ollama(tiny.url, lambda client: client.ps().models)
    assert loaded.model == CHAT_MODEL
    assert loaded.context_length == 4096
    assert loaded.expires_at.year > 2300
    assert "Forever" in by_command(tiny.url, tmp_path, "ps")


def test_a_client_that_leaves_llama_cpp_frees_the_slot_and_the_model(tiny: Watched) -> None:
    def works() -> bool:
        slots = httpx.get(f"{tiny.node('tiny')['ollama_url']}/slots", trust_env=False).raise_for_status().json()
        return any(slot["is_processing"] for slot in slots)

    left_alone(tiny, CHAT_MODEL)
    until(works, lambda working: not working)


def served_by(router: Watched, path: str, body: dict[str, Any], pool: ThreadPoolExecutor) -> set[str]:
    """Ask four times at once and return who answered."""
    calls = [pool.submit(router.http.post, path, json=body, timeout=WAIT_S) for _ in range(4)]
    answers = [call.result() for call in calls]
    assert {answer.status_code for answer in answers} == {200}
    return {answer.headers["x-fleet-node"] for answer in answers}


def test_one_model_may_be_served_by_nodes_of_both_dialects(
    tiny: Watched, ollama_093: RealOllama, tmp_path: Path
) -> None:
    asked = {"model": CHAT_MODEL, "messages": HI, "options": SHORT | {"num_predict": 30}, "stream": False}
    httpx.post(f"{ollama_093.url}/api/chat", json=asked, timeout=WAIT_S, trust_env=False).raise_for_status()
    with agent(tmp_path, "large", router_url=tiny.url, ollama=ollama_093.url) as large, ThreadPoolExecutor(4) as pool:
        tiny.wait_for("large", up=True)
        until(lambda: tiny.node("large")["ollama"]["models_loaded"])
        listed = as_ollama(tiny.url, lambda client: client.list().models)
        assert [model.model for model in listed].count(CHAT_MODEL) == 1
        for path, limited in (("/api/chat", asked), ("/v1/chat/completions", asked | {"max_tokens": 30})):
            assert served_by(tiny, path, limited, pool) == {"tiny", "large"}
        assert large.stop() == 0
    tiny.wait_for("large", "offline")


def test_llama_cpp_ends_with_its_agent_but_not_before_the_stream_that_runs(tmp_path: Path, tiny: Watched) -> None:
    home = tmp_path / "brief"
    home.mkdir()
    for name in ("models", "engines"):
        if (tiny.home / "tiny" / name).exists():
            (home / name).symlink_to(tiny.home / "tiny" / name)
    nowhere = f"127.0.0.1:{free_port()}"
    with (
        watched_router(tmp_path) as router,
        agent(tmp_path, "brief", router_url=router.url, engine="auto", ollama=nowhere) as brief,
    ):
        router.wait_for("brief", up=True)
        processes = psutil.Process(brief.process.pid).children(recursive=True)
        assert processes
        lines: list[str] = []
        asked = {"model": CHAT_MODEL, "prompt": STORY["prompt"], "options": SHORT | {"num_predict": 60}}
        with router.http.stream("POST", "/api/generate", json=asked, timeout=WAIT_S) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) == 1:
                    brief.process.terminate()
                    router.wait_for("brief", "draining")
        assert brief.process.wait(30) == 0
        router.wait_for("brief", "offline")
    last = json.loads(lines[-1])
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 60)
    assert "the built-in llama.cpp serves instead" in brief.said
    assert not psutil.wait_procs(processes, timeout=5)[1]
    assert proven(tmp_path) == 1
