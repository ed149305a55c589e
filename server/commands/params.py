"""Every command with the parameters it takes, and the sections that help and documentation show them in."""

import inspect
import re
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from engines.params.base import Params
from engines.params.deploy import DeployParams
from training.params.app import AppParams
from training.params.export import ExportParams
from training.params.task import TASKS, params_of
from training.params.web_ui import WebUiParams

SUPPORTED: dict[str, type[Params]] = {
    "deploy": DeployParams,
    **{name: params_of(task) for name, task in TASKS.items()},
}
COMMANDS: dict[str, type[Params]] = {
    **SUPPORTED,
    "export": ExportParams,
    "app": AppParams,
    "web-ui": WebUiParams,
}


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


def groups() -> list[Section]:
    """Every group that any command is composed of, once, with all that it defines."""
    found = dict.fromkeys(section.group for model in COMMANDS.values() for section in sections(model))
    return [Section(group, {name: group.model_fields[name] for name in own_names(group)}) for group in found]


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
