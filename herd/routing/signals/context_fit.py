"""A prompt longer than the loaded context is cut or forces a reload; one that fits with room to answer is neither."""

from herd.routing.context import Context
from herd.routing.policy import Ask
from projections.fleet import Node


def context_fit(node: Node, ask: Ask, context: Context) -> float:
    """Return a share of `score_context_fit_max` (15) by loaded context over the estimated prompt, both in tokens.

    Below 1: -100 %; below 1.5: 20 %; below 3: 50 %; below 8: 80 %; else 100 %. Zero where the model is not loaded, or
    either length is unknown.
    """
    resident = node.loaded.get(ask.model)
    if resident is None or resident.context_length <= 0 or ask.tokens <= 0:
        return 0.0
    return context.parameters.score_context_fit_max * _share(resident.context_length / ask.tokens)


def _share(ratio: float) -> float:
    if ratio < 1.0:
        return -1.0
    if ratio < 1.5:
        return 0.2
    if ratio < 3.0:
        return 0.5
    return 0.8 if ratio < 8.0 else 1.0
