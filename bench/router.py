"""Herd beside a direct connection, nginx and the peer, in one run on one machine: ratios that can be believed.

    python -m bench.router [--peer] [--rounds 3] [--only ns64,st8] [--json FILE]

The router under test has processor 0 to itself; the nodes and the load generator share processor 1. Every figure is a
median over rounds in which the targets take turns. `--peer` installs `ollama-herd` into its own environment under
bench/build.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

HERE = Path(__file__).parent
BUILD = HERE / "build"
NODES = 4
MODEL = "bench:1b"
#: Slots that each node reports. Plenty: what is measured is the router's cost, not its queueing.
PARALLEL = 1024


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    name: str
    title: str
    connections: int
    seconds: float
    streaming: bool = False
    chunks: int = 0
    delay_us: int = 0
    body_bytes: int = 1900
    ramp_us: int = 0
    path: str = "/api/chat"


SCENARIOS = (
    Scenario("ns1", "1 connection", 1, 2.0),
    Scenario("ns16", "16 connections", 16, 2.0),
    Scenario("ns64", "64 connections", 64, 2.0),
    Scenario("st8", "8 streams, 50 chunks/s each", 8, 3.0, True, 50, 20_000),
    Scenario("st32", "32 streams, 50 chunks/s each", 32, 3.0, True, 50, 20_000, ramp_us=2_000),
    Scenario("st256", "256 streams, 20 chunks/s each", 256, 4.0, True, 40, 50_000, ramp_us=2_000),
    Scenario("mid", "200 streams, 100 chunks/s each", 200, 4.0, True, 200, 10_000, ramp_us=2_000),
    Scenario("sat", "256 streams, 200 chunks/s each", 256, 4.0, True, 400, 5_000, ramp_us=2_000),
    Scenario("hold", "1,000 streams, 2 chunks/s each", 1000, 8.0, True, 8, 500_000, ramp_us=2_000),
    Scenario("after", "1 connection, after those 1,000", 1, 2.0),
    Scenario("oai16", "/v1, 16 connections", 16, 2.0, path="/v1/chat/completions"),
    Scenario("ns100k", "100 KB bodies, 8 connections", 8, 2.0, body_bytes=100_000),
    Scenario("ns5m", "5 MB bodies, 4 connections", 4, 3.0, body_bytes=5_000_000),
)


@dataclass
class Target:
    """Something that answers, and the processes that it costs."""

    name: str
    port: int
    processes: Callable[[], list[psutil.Process]]
    samples: dict[str, list[dict[str, float]]] = field(default_factory=dict[str, list[dict[str, float]]])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return 0; 1 if a floor was missed."""
    options = _options(argv)
    wanted = [s for s in SCENARIOS if not options.only or s.name in options.only.split(",")]
    build()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-bench-")))
        nodes = [stack.enter_context(backend(cpu=1)) for _ in range(NODES)]
        targets = [stack.enter_context(_direct())]
        if shutil.which("nginx"):
            targets.append(stack.enter_context(_nginx(folder, nodes)))
        else:
            print("nginx is not installed (Debian: nginx-light): the ratios to it are left out", file=sys.stderr)
        targets.append(stack.enter_context(_herd(folder, nodes)))
        if options.peer:
            targets.append(stack.enter_context(_peer(folder, nodes)))
        for number in range(options.rounds):
            for scenario in wanted:
                body = body_file(folder, scenario)
                for target in targets:
                    if target.name == "peer" and scenario.name in ("hold", "after", "sat", "st256", "mid"):
                        continue  # the peer has 32 slots on four nodes: its queue would be measured, not its cost
                    sample = _measure(target, scenario, body)
                    target.samples.setdefault(scenario.name, []).append(sample)
                    print(f"round {number + 1} {scenario.name:7} {target.name:7} {_short(sample)}", file=sys.stderr)
    report = _report(targets, wanted)
    print(report.text)
    if options.json:
        samples = {target.name: target.samples for target in targets}
        Path(options.json).write_text(json.dumps(samples, indent=1), encoding="utf-8")
    return 0 if report.floors_met else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="also measure ollama-herd from PyPI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="scenarios, comma separated: " + ",".join(s.name for s in SCENARIOS))
    parser.add_argument("--json", default="", help="write every sample to this file")
    return parser.parse_args(argv)


# --- targets --------------------------------------------------------------------------------------------------------


def build() -> None:
    """Compile the two C programs where they are missing or older than their source."""
    BUILD.mkdir(exist_ok=True)
    for name in ("backend", "loadgen"):
        source, program = HERE / f"{name}.c", BUILD / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)


@contextmanager
def _process(
    command: list[str], *, cpu: int, env: dict[str, str] | None = None, output: int | IO[bytes] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    process: subprocess.Popen[bytes] = subprocess.Popen(
        ["taskset", "-c", str(cpu), *command], env=env, stdout=output, stderr=output
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def backend(*, cpu: int) -> Generator[int]:
    port = _free_port()
    with _process([str(BUILD / "backend"), str(port)], cpu=cpu):
        _wait_for(port, "/")
        yield port


@contextmanager
def _direct() -> Generator[Target]:
    port = _free_port()
    with _process([str(BUILD / "backend"), str(port)], cpu=0) as process:
        _wait_for(port, "/")
        yield Target("direct", port, lambda: _family(process.pid))


@contextmanager
def _nginx(folder: Path, nodes: list[int]) -> Generator[Target]:
    port = _free_port()
    servers = " ".join(f"server 127.0.0.1:{node};" for node in nodes)
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 8192; }}
http {{ access_log off; client_max_body_size 0; client_body_buffer_size 8m; client_body_temp_path {folder}/body;
proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
keepalive_requests 1000000;
upstream nodes {{ least_conn; {servers} keepalive 2048; keepalive_requests 1000000; }}
server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://nodes; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off; }} }} }}
""",
        encoding="utf-8",
    )
    with _process(["nginx", "-p", str(folder), "-c", str(config)], cpu=0) as process:
        _wait_for(port, "/")
        yield Target("nginx", port, lambda: _family(process.pid))


@contextmanager
def _herd(folder: Path, nodes: list[int]) -> Generator[Target]:
    port = _free_port()
    environment = os.environ | {
        "FLEET_DATA_DIR": str(folder / "herd"),
        "FLEET_MDNS": "false",
        "FLEET_CONSOLE_LOG_LEVEL": "WARNING",
        "FLEET_ENV_FILE": str(folder / "none"),
    }
    command = [sys.executable, "-m", "herd.cli.herd", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with _process(command, cpu=0, env=environment) as process, _heartbeats(port, nodes):
        yield Target("herd", port, lambda: _family(process.pid))


@contextmanager
def _peer(folder: Path, nodes: list[int]) -> Generator[Target]:
    place = BUILD / "peer"
    if not (place / "bin" / "herd").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(place / "bin" / "pip"), "install", "-q", "ollama-herd"], check=True)
    port = _free_port()
    environment = os.environ | {
        "HOME": str(folder),
        "FLEET_DATA_DIR": str(folder / "peer"),
        "FLEET_NODE_TELEMETRY": "false",
        "FLEET_TELEMETRY": "false",
        "FLEET_ENV_FILE": str(folder / "none"),
        "FLEET_DISABLE_MODEL_PRELOADER": "true",
        "FLEET_FLEET_INTELLIGENCE": "false",
    }
    command = [str(place / "bin" / "herd"), "--host", "127.0.0.1", "--port", str(port)]
    with (
        (folder / "peer.log").open("wb") as log,
        _process(command, cpu=0, env=environment, output=log) as process,
        _heartbeats(port, nodes, parallel=8),
    ):
        yield Target("peer", port, lambda: _family(process.pid))


@contextmanager
def _heartbeats(port: int, nodes: list[int], *, parallel: int = PARALLEL) -> Generator[None]:
    """Report the nodes to a router until the body ends."""
    _wait_for(port, "/fleet/status")
    over = threading.Event()

    def report() -> None:
        for number, node in enumerate(nodes):
            _post(port, "/heartbeat", heartbeat(f"bench-{number}", node, parallel))

    def repeat() -> None:
        while not over.wait(5.0):
            try:
                report()
            except OSError as error:
                print(f"heartbeat failed: {error}", file=sys.stderr)

    report()
    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def heartbeat(name: str, port: int, parallel: int) -> dict[str, Any]:
    loaded = {"name": MODEL, "size_gb": 1.0, "parameter_size": "1B", "quantization": "Q4_0", "context_length": 8192}
    return {
        "node_id": name,
        "arch": "x86_64",
        "timestamp": time.time(),
        "cpu": {"cores_physical": 8, "utilization_pct": 5.0},
        "memory": {"total_gb": 64.0, "used_gb": 10.0, "available_gb": 54.0, "pressure": "normal"},
        "disk": {"total_gb": 500.0, "used_gb": 100.0, "available_gb": 400.0},
        "ollama": {
            "models_loaded": [loaded],
            "models_available": [MODEL],
            "requests_active": 0,
            "num_parallel": parallel,
            "version": "0.12.0",
        },
        "ollama_host": f"http://127.0.0.1:{port}",
        "lan_ip": "127.0.0.1",
    }


# --- measuring ------------------------------------------------------------------------------------------------------


def _measure(target: Target, scenario: Scenario, body: Path) -> dict[str, float]:
    command = ["taskset", "-c", "1", str(BUILD / "loadgen"), str(target.port), scenario.path]
    command += [str(scenario.connections), str(scenario.seconds), str(body), str(scenario.ramp_us)]
    before = _cpu_seconds(target)
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=scenario.seconds + 60)
    cpu = _cpu_seconds(target) - before
    sample: dict[str, float] = json.loads(done.stdout)
    sample["cpu_us_request"] = cpu * 1e6 / max(sample["requests"], 1)
    sample["cpu_us_chunk"] = cpu * 1e6 / max(sample["chunks"], 1)
    sample["cpu_s"] = cpu
    sample["rss_mb"] = sum(process.memory_info().rss for process in target.processes()) / 1e6
    time.sleep(1.0 if scenario.streaming else 0.2)  # streams whose client has left end at the node
    return sample


def _cpu_seconds(target: Target) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in target.processes()))


def _family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def body_file(folder: Path, scenario: Scenario) -> Path:
    path = folder / f"{scenario.name}.json"
    if not path.exists():
        body: dict[str, Any] = {"model": MODEL, "stream": scenario.streaming}
        if scenario.streaming:
            body["options"] = {"num_predict": scenario.chunks, "delay_us": scenario.delay_us}
        room = max(0, scenario.body_bytes - len(json.dumps(body)) - 60)
        words = "tell me something that I do not know yet "
        text = (words * (room // len(words) + 1))[:room]
        if scenario.body_bytes > 1_000_000:
            body["messages"] = [{"role": "user", "content": "what is this?", "images": ["A" * (room // 4 * 4)]}]
        else:
            body["messages"] = [{"role": "user", "content": text}]
        path.write_text(json.dumps(body), encoding="utf-8")
    return path


# --- report ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A ratio to reach: `floor` for the first landing, `goal` beyond it."""

    title: str
    scenario: str
    value: Callable[[Callable[[str, str, str], float]], float]
    goal: float
    higher_is_better: bool

    @property
    def floor(self) -> float:
        """Half the goal where higher is better, twice where lower is."""
        return self.goal / 2 if self.higher_is_better else self.goal * 2

    def met(self, value: float, limit: float) -> bool:
        """Whether a value is at the limit or on its better side."""
        return value >= limit if self.higher_is_better else value <= limit


def _ratio(scenario: str, figure: str, other: str) -> Callable[[Callable[[str, str, str], float]], float]:
    return lambda at: at("herd", scenario, figure) / at(other, scenario, figure)


def _added(scenario: str, other: str) -> Callable[[Callable[[str, str, str], float]], float]:
    def added(at: Callable[[str, str, str], float]) -> float:
        direct = at("direct", scenario, "latency_p50")
        return (at("herd", scenario, "latency_p50") - direct) / max(at(other, scenario, "latency_p50") - direct, 1.0)

    return added


GOALS = (
    Goal("req/s, 64 connections, to nginx", "ns64", _ratio("ns64", "rps", "nginx"), 0.12, True),
    Goal("req/s, 16 connections, to the peer", "ns16", _ratio("ns16", "rps", "peer"), 100, True),
    Goal("added p50, 1 connection, to nginx's", "ns1", _added("ns1", "nginx"), 2.5, False),
    Goal("added p50, 1 connection, to the peer's", "ns1", _added("ns1", "peer"), 1 / 60, False),
    Goal("first chunk p50, 8 streams, to nginx", "st8", _ratio("st8", "ttfc_p50", "nginx"), 3.0, False),
    Goal("first chunk p50, 32 streams, to nginx", "st32", _ratio("st32", "ttfc_p50", "nginx"), 2.7, False),
    Goal("chunk delay p50, 256 streams, to nginx", "st256", _ratio("st256", "delay_p50", "nginx"), 1.8, False),
    Goal("CPU per chunk, 256 streams, to nginx", "st256", _ratio("st256", "cpu_us_chunk", "nginx"), 2.2, False),
    Goal("CPU per chunk, 20,000 chunks/s, to nginx", "mid", _ratio("mid", "cpu_us_chunk", "nginx"), 1.8, False),
    Goal("chunks/s, saturated, to nginx", "sat", _ratio("sat", "chunks_s", "nginx"), 0.80, True),
    Goal("1,000 streams, CPU, to nginx", "hold", _ratio("hold", "cpu_s", "nginx"), 3.0, False),
    Goal("100 KB bodies, req/s, to nginx", "ns100k", _ratio("ns100k", "rps", "nginx"), 0.30, True),
    Goal("5 MB bodies, CPU, to nginx", "ns5m", _ratio("ns5m", "cpu_us_request", "nginx"), 3.5, False),
    Goal(
        "first chunk p50, 256 streams, over direct, ms",
        "st256",
        lambda at: (at("herd", "st256", "ttfc_p50") - at("direct", "st256", "ttfc_p50")) / 1000,
        2.0,
        False,
    ),
    Goal(
        "p50 after a burst of 1,000 streams, to before",
        "after",
        lambda at: at("herd", "after", "latency_p50") / at("herd", "ns1", "latency_p50"),
        1.2,
        False,
    ),
)


@dataclass(frozen=True)
class Report:
    """What was found."""

    text: str
    floors_met: bool


def _report(targets: list[Target], scenarios: list[Scenario]) -> Report:
    by_name = {target.name: target for target in targets}

    def at(target: str, scenario: str, figure: str) -> float:
        return statistics.median(sample[figure] for sample in by_name[target].samples[scenario])

    titles = ("load", "target", "req/s", "p50 us", "p99 us", "first chunk p50 us", "p99 us", "chunks/s", "delay p50 us")
    titles += ("p99 us", "CPU us/request", "CPU us/chunk", "RSS MB", "errors")
    lines = ["", "| " + " | ".join(titles) + " |", "|---|---|" + "---:|" * 12]
    columns = ("rps", "latency_p50", "latency_p99", "ttfc_p50", "ttfc_p99", "chunks_s", "delay_p50", "delay_p99")
    for scenario in scenarios:
        for target in targets:
            samples = target.samples.get(scenario.name)
            if not samples:
                continue
            cells = [_cell(samples, column) for column in (*columns, "cpu_us_request")]
            cells.append(_cell(samples, "cpu_us_chunk") if scenario.streaming else "")
            cells.append(_cell(samples, "rss_mb"))
            cells.append(f"{sum(sample['errors'] + sample['not_200'] for sample in samples):.0f}")
            lines.append(f"| {scenario.title} | {target.name} | " + " | ".join(cells) + " |")
    lines += ["", "| goal | reached | goal | floor | |", "|---|---:|---:|---:|---|"]
    met = True
    for goal in GOALS:
        try:
            value = goal.value(at)
        except KeyError:
            continue  # a target or a scenario that this run left out
        verdict = "goal" if goal.met(value, goal.goal) else "floor" if goal.met(value, goal.floor) else "MISSED"
        met = met and verdict != "MISSED"
        sign = "≥" if goal.higher_is_better else "≤"
        lines.append(f"| {goal.title} | {value:.3g} | {sign} {goal.goal:.3g} | {sign} {goal.floor:.3g} | {verdict} |")
    return Report("\n".join(lines), met)


def _cell(samples: list[dict[str, float]], column: str) -> str:
    values = [sample[column] for sample in samples if column in sample]
    return f"{statistics.median(values):,.0f}" if values else ""


def _short(sample: dict[str, float]) -> str:
    return " ".join(f"{key}={value:.0f}" for key, value in sample.items())


# --- small things ---------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, path: str, *, seconds: float = 30.0) -> None:
    over = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > over:
                raise
            time.sleep(0.05)
        else:
            return


def _post(port: int, path: str, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).read()


if __name__ == "__main__":
    sys.exit(main())
