"""A first answer convinces more than a page of status, above all when it says why it came from where it did."""

import time
from collections.abc import Callable

import click
import msgspec

from herd.cli.ask import ask
from herd.cli.output import duration, indented, number, plain, terminal_columns
from herd.cli.program import BAD_NEWS, complain
from herd.cli.status import FleetStatus, Node, parse
from herd.cli.traces import Traces
from projections.traces import Trace

#: How long the node may take until it serves a model, seconds: the first time it may have to download one.
MODEL_WAIT_S = 900.0
#: A node that has served no model for so long gets explained to the user, seconds.
EXPLAIN_AFTER_S = 10.0
#: How long a model may take to load and begin, and between two pieces of its answer, seconds.
ANSWER_WAIT_S = 300.0
#: How long the trace of an answer may take to be stored, seconds.
TRACE_WAIT_S = 5.0
#: Pause between two looks at something that will come, seconds.
POLL_S = 0.1
#: Longest first answer, tokens: this is a greeting.
ANSWER_MAX_TOKENS = 80
#: Models that are tried for the first answer before it is left to the user.
MODELS_TRIED = 3

#: Parts of the names of models that cannot chat.
NOT_FOR_CHAT = ("embed", "minilm", "bge-", "rerank")


class Message(msgspec.Struct, frozen=True):
    """A part of an answer."""

    content: str = ""


class Chunk(msgspec.Struct, frozen=True):
    """A line of a streamed answer."""

    message: Message = Message()
    error: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How the first question went."""

    request: str
    error: str = ""


def greet(url: str, prompt: str, check: Callable[[], None], *, since_s: float) -> bool:
    """Ask the first question as soon as a model is served, print the answer and why it came from where it did.

    Returns whether there was an answer. `check` is called while waiting and may raise, for what is no use waiting for.
    Nodes that have not reported since `since_s`, seconds since the epoch, are only what the router remembers.
    """
    click.echo(f"The router runs at {url}. Waiting for a model …")
    models = wait_for_models(url, check, since_s)
    for model in models[:MODELS_TRIED]:
        click.echo(f"\n{click.style('You:', bold=True)} {prompt}")
        click.echo(click.style(f"{plain(model)}: ", bold=True), nl=False)
        answer = ask_first(url, model, prompt)
        if not answer.error:
            show_decision(url, answer.request)
            return True
        complain(f"{model} gave no answer: {answer.error}", "", BAD_NEWS)
    return False


def wait_for_models(url: str, check: Callable[[], None], since_s: float) -> list[str]:
    """Return the models that can chat, best first for a first answer; none if none is served in time."""
    explained = False
    begin = time.monotonic()
    while time.monotonic() - begin < MODEL_WAIT_S:
        check()
        found = fleet(url)
        if models := for_chat(found, since_s):
            return models
        up_without_models = any(node.status == "online" and node.engine.up for node in found.nodes)
        if up_without_models and not explained and time.monotonic() - begin > EXPLAIN_AFTER_S:
            click.echo("The engine runs but has no model that can chat. In another window: ollama pull llama3.2:1b")
            explained = True
        time.sleep(POLL_S)
    complain("no model was served in time", "See `herd status`, and the log files for the reason.", BAD_NEWS)
    return []


def for_chat(found: FleetStatus, since_s: float) -> list[str]:
    """Return the models that can chat: those in memory first, then the smallest, which answers soonest.

    A node that has not reported since, seconds since the epoch, may have gone while no router listened.
    """
    sizes: dict[str, tuple[bool, float]] = {}
    for node in found.nodes:
        if node.status != "online" or (node.last_heartbeat or 0.0) < since_s:
            continue
        in_memory = {model.name for model in node.ollama.models_loaded}
        for model in node.ollama.models_available:
            if not any(word in model.lower() for word in NOT_FOR_CHAT):
                sizes[model] = (model not in in_memory, node.ollama.models_available_sizes.get(model, 0.0))
    return sorted(sizes, key=lambda model: sizes[model])


def ask_first(url: str, model: str, prompt: str) -> Answer:
    """Stream an answer to the terminal as it comes."""
    import httpx  # noqa: PLC0415 - costs 0.2 s, which `herd --help` need not wait for

    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "options": {"temperature": 0, "num_predict": ANSWER_MAX_TOKENS},
    }
    request = ""
    try:
        with httpx.stream("POST", f"{url}/api/chat", json=body, timeout=ANSWER_WAIT_S, trust_env=False) as answer:
            request = answer.headers.get("X-Request-Id", "")
            for line in answer.iter_lines():
                chunk = msgspec.json.decode(line, type=Chunk)
                if chunk.error:
                    return Answer(request=request, error=chunk.error)
                click.echo(plain(chunk.message.content), nl=False)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        return Answer(request=request, error=str(error) or type(error).__name__)
    finally:
        click.echo()
    return Answer(request=request)


def show_decision(url: str, request: str) -> None:
    """Print why the answer came from where it did, and what answered."""
    deadline = time.monotonic() + TRACE_WAIT_S
    while (trace := trace_of(url, request)) is None:
        if time.monotonic() > deadline:
            complain("the trace of this answer was not stored in time", f"See {url}/healthz.", BAD_NEWS)
            return
        time.sleep(POLL_S)
    points = ", ".join(f"{name} {value:+g}" for name, value in trace.scores_breakdown.items() if name != "total")
    node = next((node for node in fleet(url).nodes if node.node_id == trace.node_id), None)
    click.echo(f"\n{click.style('Decision', bold=True)} {plain(trace.request_id)}")
    show_part("node", f"{plain(trace.node_id)} with {number(trace.score, 1)} points: {points}")
    first, tokens = duration(trace.time_to_first_token_ms), number(trace.completion_tokens)
    show_part("timing", f"first token after {first}, {tokens} tokens in {duration(trace.latency_ms)}")
    if node is not None:
        show_part("engine", engine(node))


def show_part(name: str, text: str) -> None:
    """Print one of several things about the answer, folded where the terminal is too narrow for it."""
    indent = 11
    lines = indented(text, terminal_columns(), indent)
    click.echo("\n".join(lines).replace(" " * indent, f"  {name}".ljust(indent), 1))


def trace_of(url: str, request: str) -> Trace | None:
    """Return the trace of a request that was answered; None as long as it is not stored."""
    body = ask(url, "/dashboard/api/traces", {"limit": 20})
    found = msgspec.json.decode(body, type=Traces).traces
    return next((trace for trace in found if trace.request_id == request), None)


def engine(node: Node) -> str:
    """Return, plainly, what answers on a node."""
    name = plain(f"{node.engine.name} {node.engine.version}".strip())
    if node.engine.dialect == "ollama":
        return f"{name} at {plain(node.ollama_url)}"
    return f"{name} at {plain(node.ollama_url)}, brought by Herd itself: not Ollama, which is used where it runs"


def fleet(url: str) -> FleetStatus:
    """Return the state of the fleet."""
    return parse(ask(url, "/fleet/status"), url)
