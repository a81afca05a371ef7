"""llama.cpp's own HTTP server as a child process, since a crash in its native code must not take the agent along.

Run as `python -m herd.node.engines.llama_cpp MODEL PORT --host … --alias …`. It ends when its standard input does, so
that it never outlives an agent, however that died.
"""

import argparse
import importlib
import os
import sys
from typing import Any

#: Prompts kept for reuse. llama.cpp's own default of 8 GiB is a laptop's whole memory.
PROMPT_CACHE_MIB = 256


def main() -> None:
    """Serve a model until standard input is closed."""
    parser = argparse.ArgumentParser(prog="python -m herd.node.engines.llama_cpp", description=__doc__)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("port", type=int, help="port to listen on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--alias", required=True, help="name under which the model is served")
    parser.add_argument("--parallel", type=int, default=2, help="requests answered at once")
    parser.add_argument("--context", type=int, default=4096, help="tokens of context for each of them")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    given = parser.parse_args()
    # Fetched at first use into a directory of its own, so no type checker can see it.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    wanted = xllamacpp.CommonParams()
    wanted.model.path = given.model
    wanted.model_alias = {given.alias}
    wanted.hostnames = [given.host]
    wanted.port = given.port
    wanted.n_parallel = given.parallel
    wanted.n_ctx = given.context * given.parallel
    wanted.cpuparams.n_threads = given.threads
    wanted.cpuparams_batch.n_threads = given.threads
    wanted.cache_ram_mib = PROMPT_CACHE_MIB
    wanted.ui = False
    server = xllamacpp.Server(wanted)
    sys.stderr.write(f"serving {given.alias} at {server.listening_address}\n")
    sys.stderr.flush()
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)  # its threads have no orderly end, and nothing here needs one


if __name__ == "__main__":
    main()
