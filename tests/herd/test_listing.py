"""The fleet shows itself as one Ollama that has what its nodes can serve just now, and nothing else."""

import pytest
from msgspec.structs import replace

from events.types import Engine, NodeStatus
from herd.api import listing, status
from projections.fleet import Fleet, Node
from projections.view import View
from tests.herd.fleets import NOW, in_memory, node, on_disk


def ash(state: NodeStatus = "online", *, engine_up: bool = True, version: str = "") -> Node:
    made = node("ash", disk=(on_disk("phi4:14b"),), loaded=(in_memory("phi4:14b"),), status=state, engine_up=engine_up)
    return replace(made, engine=Engine(version=version))


def fleet(*nodes: Node) -> Fleet:
    return Fleet(nodes={each.name: each for each in nodes})


def names(listed: dict[str, list[dict[str, str]]]) -> list[str]:
    return [entry["name"] for entry in listed["models"]]


@pytest.mark.parametrize(
    ("shown", "there"),
    [
        (ash(), True),
        (ash("degraded"), True),
        (ash("draining"), True),
        (ash("offline"), False),
        (ash(engine_up=False), False),
    ],
    ids=["online", "degraded", "draining", "offline", "engine down"],
)
def test_models_are_listed_where_an_engine_can_serve_them(shown: Node, there: bool) -> None:
    listed = fleet(shown)
    expected = ["phi4:14b"] if there else []
    assert names(listing.tags(listed)) == names(listing.ps(listed)) == expected
    assert [entry["id"] for entry in listing.openai_models(listed)["data"]] == expected
    told = status.fleet_status(View(fleet=listed), now=NOW)
    assert told["fleet"]["models_loaded"] == len(expected)
    [entry] = told["nodes"]
    assert names({"models": entry["ollama"]["models_loaded"]}) == expected
    assert entry["ollama"]["models_available"] == ["phi4:14b"]  # a disk keeps what it has


def test_a_model_is_counted_where_it_is_served_only() -> None:
    away = replace(ash("offline"), name="elm")
    [entry] = listing.tags(fleet(ash(), away))["models"]
    assert entry["details"]["fleet_nodes"] == ["ash"]
    [entry] = listing.ps(fleet(ash(), away))["models"]
    assert entry["fleet_nodes"] == ["ash"]


@pytest.mark.parametrize(
    ("spelled", "shown"),
    [
        ("0.12.3", "0.12.3"),
        ("v0.12.3", "0.12.3"),
        ("0.12.3-rc1", "0.12.3"),
        ("0.12.3+cuda.12", "0.12.3"),
        ("0.12", "0.12"),
        ("\u00b2.1", listing.VERSION_SPOKEN),
        ("\u0661.1", listing.VERSION_SPOKEN),
        ("<b>0.1</b>", listing.VERSION_SPOKEN),
        ("0.1-<b>", listing.VERSION_SPOKEN),
        ("0.12.3\n", listing.VERSION_SPOKEN),
        ("9" * 500, listing.VERSION_SPOKEN),
        ("1.2.3.4.5", listing.VERSION_SPOKEN),
        ("", listing.VERSION_SPOKEN),
    ],
)
def test_only_what_is_spelled_like_a_version_is_one(spelled: str, shown: str) -> None:
    assert listing.version(fleet(ash(version=spelled))) == shown


def test_the_lowest_version_of_the_nodes_that_serve_is_shown() -> None:
    older = replace(ash(version="0.9.10"), name="elm")
    down = replace(ash(version="0.1.0", engine_up=False), name="oak")
    poison = replace(ash(version="\u00b2.1"), name="yew")
    assert listing.version(fleet(ash(version="0.12.3"), older, down, poison)) == "0.9.10"
