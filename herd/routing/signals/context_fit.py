"""A prompt longer than the loaded context is cut or forces a reload; one that fits with room to answer is neither."""

from collections.abc import Sequence

from herd.routing.context import Context
from herd.routing.policy import Ask
from projections.fleet import Node


def context_fit(nodes: Sequence[Node], ask: Ask, context: Context) -> list[float]:
    """Return a share of `score_context_fit_max` (15) by loaded context over the estimated prompt, both in tokens.

    Below 1: -100 %; below 1.5: 20 %; below 3: 50 %; below 8: 80 %; else 100 %. Zero where the model is not loaded, or
    either length is unknown.
    """
    tokens = ask.tokens
    if tokens <= 0:
        return [0.0] * len(nodes)
    model = ask.model
    full = context.parameters.score_context_fit_max
    return [
        full * _share(resident.context_length / tokens) if (resident := node.loaded.get(model)) is not None else 0.0
        for node in nodes
    ]


def _share(ratio: float) -> float:
    if ratio <= 0.0:  # the node does not say how long the context is
        return 0.0
    if ratio < 1.0:
        return -1.0
    if ratio < 1.5:
        return 0.2
    if ratio < 3.0:
        return 0.5
    return 0.8 if ratio < 8.0 else 1.0
