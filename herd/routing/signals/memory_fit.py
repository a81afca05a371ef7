"""A machine with room to spare takes a model without pushing out another that somebody will want back."""

from collections.abc import Sequence

from herd.routing.context import Context
from herd.routing.footprint import available_gib, need_gib
from herd.routing.policy import Ask
from projections.fleet import Node


def memory_fit(nodes: Sequence[Node], ask: Ask, context: Context) -> list[float]:
    """Return `score_memory_fit_max` (20) if loaded, else a share of it by available over needed memory.

    Above 2.0: all; above 1.5: 75 %; above 1.2: 40 %; from 1.0: 15 %; below, or where either is unknown: 0. Available is
    the node's reading within its owner's ceiling; needed is the cost measured on any node, else the weights.
    """
    model = ask.model
    full = context.parameters.score_memory_fit_max
    return [full if model in node.loaded else full * _share(node, model, context) for node in nodes]


def _share(node: Node, model: str, context: Context) -> float:
    need = need_gib(context.size, node, model)
    available = available_gib(node)
    if need is None or available is None:
        return 0.0
    ratio = available / need
    if ratio > 2.0:
        return 1.0
    if ratio > 1.5:
        return 0.75
    if ratio > 1.2:
        return 0.4
    return 0.15 if ratio >= 1.0 else 0.0
