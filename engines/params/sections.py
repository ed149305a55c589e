"""The sections that help, documentation and forms show a command's parameters in."""

import inspect
import re
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from engines.params.base import Params


@dataclass(frozen=True, slots=True)
class Section:
    """Those parameters of a command that one group defines."""

    group: type[Params]
    fields: dict[str, FieldInfo]

    @property
    def title(self) -> str:
        """`LoraGaParams` -> `lora ga`."""
        return re.sub(r"(?<!^)(?=[A-Z])", " ", self.group.__name__.removesuffix("Params")).lower()

    @property
    def description(self) -> str:
        return inspect.getdoc(self.group) or ""


def sections(model: type[Params]) -> list[Section]:
    """The parameters of `model`, each in the section of the group whose definition counts, the most general first."""
    owners = _owners(model)
    return [
        Section(group, {name: model.model_fields[name] for name in owners if owners[name] is group})
        for group in reversed(model.__mro__)
        if group in owners.values()
    ]


def own_names(group: type[Params]) -> list[str]:
    """The parameters that the group itself defines, in their order."""
    return [name for name in inspect.get_annotations(group) if name in group.model_fields]


def _owners(model: type[Params]) -> dict[str, type[Params]]:
    """The group whose definition of each parameter counts in `model`: the first that Python would look it up in."""
    owners: dict[str, type[Params]] = {}
    for group in reversed(model.__mro__):
        if issubclass(group, Params):
            owners |= dict.fromkeys(own_names(group), group)
    return owners
