"""Every routing policy by its name: one file and one line for each."""

from collections.abc import Callable, Mapping
from typing import Any

from herd.routing.classic import classic
from herd.routing.policy import Policy

Factory = Callable[[dict[str, Any]], Policy]
"""Builds a policy from its parameters; raises `SettingsError` for parameters that have no sense."""

POLICIES: Mapping[str, Factory] = {
    "classic": classic,
}
