"""Every command with the parameters it takes."""

from engines.params.base import Params
from engines.params.deploy import DeployParams
from engines.params.sections import Section, own_names, sections
from training.params.app import AppParams, StudioParams
from training.params.task import TASKS, params_of

PAGES: dict[str, type[AppParams]] = {"app": AppParams, "web-ui": StudioParams}
COMMANDS: dict[str, type[Params]] = {
    "deploy": DeployParams,
    **{name: params_of(task) for name, task in TASKS.items()},
    **PAGES,
}


def groups() -> list[Section]:
    """Every group that any command is composed of, once, with all that it defines."""
    found = dict.fromkeys(section.group for model in COMMANDS.values() for section in sections(model))
    return [Section(group, {name: group.model_fields[name] for name in own_names(group)}) for group in found]
