"""A model in memory answers at once; one on disk must be read first, which takes longer than most answers."""

from collections.abc import Sequence

from herd.routing.context import Context
from herd.routing.policy import Ask
from projections.fleet import Node

#: For half an hour after a model left memory its file is likely still in the page cache.
WARM_NS = 1800 * 1_000_000_000


def thermal(nodes: Sequence[Node], ask: Ask, context: Context) -> list[float]:
    """Return `score_model_hot` (50) in memory, `_warm` (30) unloaded under 1800 s ago, `_cold` (10) on disk, else 0.

    Reads the residency and inventory events of the node.
    """
    model = ask.model
    hot = context.parameters.score_model_hot
    return [hot if model in node.loaded else _not_loaded(node, model, context) for node in nodes]


def _not_loaded(node: Node, model: str, context: Context) -> float:
    unloaded_at = node.unloaded_at.get(model)
    if unloaded_at is not None and context.now - unloaded_at < WARM_NS:
        return context.parameters.score_model_warm
    return context.parameters.score_model_cold if model in node.models else 0.0
