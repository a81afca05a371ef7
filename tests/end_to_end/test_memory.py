"""A body of megabytes must go with its request: what waits for the collector of cycles may wait for very long."""

import gc
from collections.abc import Generator
from pathlib import Path

import pytest

from herd.dispatch.run import Job, Run
from tests.end_to_end.world import fleet
from tests.fakes.ollama import FakeOllama

CHAT = b'{"model":"llama3:8b","stream":false,"messages":[{"role":"user","content":"hello"}]}'


@pytest.fixture
def no_collector() -> Generator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("fault", ["", "refuse", "reset_before_head", "garbage", "busy", "hang"])
@pytest.mark.parametrize("body", [CHAT, b"{", CHAT[:-5] + b"x" * 300_000])
async def test_a_request_leaves_nothing_behind_however_it_ends(tmp_path: Path, body: bytes, fault: str) -> None:
    async with fleet(tmp_path, [FakeOllama()], read_timeout=0.2) as found:
        if fault:
            setattr(found.nodes["node-0"].faults, fault, True)
        for _ in range(3):
            await found.client.post("/api/chat", content=body)
        await found.client.get("/api/version")
        assert [each for each in gc.get_objects() if isinstance(each, Job | Run)] == []
