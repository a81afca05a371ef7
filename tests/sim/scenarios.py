"""The fleets and the weather that the simulation tests run in."""

import msgspec

from events.types import Capacity, Model
from herd.replay.machine import Machine
from herd.replay.world import Faults, Rules, World, traffic
from herd.routing import POLICIES
from herd.routing.chance import Chance

GB = 10**9

CHAT = Model(name="llama3:8b", size_bytes=5 * GB, family="llama", capabilities=("completion", "tools"))
CODE = Model(name="qwen3-coder:30b", size_bytes=19 * GB, family="qwen3", capabilities=("completion", "tools"))
BIG = Model(name="llama3:70b", size_bytes=40 * GB, family="llama", capabilities=("completion",))
EMBED = Model(name="nomic-embed-text", size_bytes=274_000_000, family="nomic-bert", capabilities=("embedding",))


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the seed."""

    machines: tuple[Machine, ...]
    models: tuple[str, ...]
    embedding: tuple[str, ...] = ()
    requests: int
    per_s: float
    leaving: float = 0.0
    tokens_out_max: int = 400
    rules: Rules = Rules()
    faults: Faults = Faults()

    def world(self, seed: int) -> World:
        """Return this fleet under that seed."""
        chance = Chance(seed ^ 0x7261_6666_6963)
        arrivals = traffic(
            chance,
            count=self.requests,
            per_s=self.per_s,
            models=self.models,
            embedding=self.embedding,
            leaving=self.leaving,
            tokens_out_max=self.tokens_out_max,
        )
        return World(self.machines, arrivals, POLICIES["classic"]({}), seed=seed, rules=self.rules, faults=self.faults)


HOME = (
    Machine(name="studio", models=(CHAT, CODE, BIG, EMBED), memory_gib=128, bandwidth_gbps=800, parallel=4),
    Machine(name="desk", models=(CHAT, CODE, EMBED), memory_gib=28, bandwidth_gbps=400, parallel=2),
    Machine(name="laptop", models=(CHAT, CODE), memory_gib=24, bandwidth_gbps=100,
            capacity=Capacity(mode="learned_medium", ceiling_gib=16, availability=0.5)),
    Machine(name="server", models=(CHAT, EMBED), memory_gib=12, bandwidth_gbps=40, bandwidth_known=False),
)  # fmt: skip

CALM = Scenario(machines=HOME, models=("llama3:8b", "qwen3-coder:30b", "llama3:70b"), requests=150, per_s=0.5)

STORM = Scenario(
    machines=HOME,
    models=("llama3:8b", "qwen3-coder:30b", "llama3:70b", "nowhere:1b"),
    requests=200,
    per_s=2.0,
    leaving=0.2,
    rules=Rules(waiting_max=20, wait_max_s=60),
    faults=Faults(
        death_every_s=90, death_lasts_s=40, stall_every_s=120, stall_lasts_s=60, drain_every_s=120, drain_lasts_s=40,
        late=0.1, duplicated=0.1, lying=0.1,
    ),
)  # fmt: skip

EQUALS = Scenario(
    machines=tuple(Machine(name=f"equal-{i}", models=(CHAT,), parallel=2, loaded=("llama3:8b",)) for i in range(4)),
    models=("llama3:8b",),
    requests=400,
    per_s=1.0,
)

SCENARIOS = {"calm": CALM, "storm": STORM, "equals": EQUALS}

#: A short history with much in it, kept as the golden log of decisions.
GOLDEN = Scenario(
    machines=(
        *HOME,
        Machine(name="twin-1", models=(CHAT, EMBED), memory_gib=32, keep_alive_s=2),
        Machine(name="twin-2", models=(CHAT, EMBED), memory_gib=32, keep_alive_s=2),
    ),
    models=("llama3:8b", "qwen3-coder:30b", "nomic-embed-text", "llama3:70b", "nowhere:1b"),
    embedding=("nomic-embed-text",),
    tokens_out_max=2000,
    requests=50,
    per_s=1.0,
    leaving=0.1,
    rules=Rules(waiting_max=20, wait_max_s=60),
    faults=Faults(death_every_s=60, death_lasts_s=30, drain_every_s=90, drain_lasts_s=20, late=0.05, lying=0.05),
)
