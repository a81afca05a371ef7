"""Every routing policy by its name: one file and one line for each."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from herd.errors import SettingsError
from herd.routing.classic import Classic
from herd.routing.context import ClassicParameters
from herd.routing.policy import Policy


class Kind(msgspec.Struct, frozen=True):
    """A policy that can be chosen: its numbers, each named as the setting it comes from, and what makes it of them."""

    name: str
    parameters: type[msgspec.Struct]
    make: Callable[[Any], Policy]

    def __call__(self, parameters: Mapping[str, Any]) -> Policy:
        """Build the policy; absent parameters have their published values. Raises `SettingsError`."""
        try:
            return self.make(msgspec.convert(dict(parameters), self.parameters))
        except msgspec.ValidationError as error:
            names = ", ".join(self.parameters.__struct_fields__)
            raise SettingsError(f"policy {self.name}: {error}", hint=f"It knows: {names}.") from error


POLICIES: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(Classic.name, ClassicParameters, Classic),
    )
}  # fmt: skip


def policy_named(name: str) -> Kind:
    """Return the policy of that name. Raises `SettingsError`."""
    kind = POLICIES.get(name)
    if kind is None:
        raise SettingsError(f"there is no routing policy {name!r}", hint=f"Use one of: {', '.join(POLICIES)}.")
    return kind
