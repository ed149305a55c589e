"""Write docs/parameters.md from the schema: `python -m server.commands.docs`."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from engines.params.about import EVERY_ENGINE, NOT_SUPPORTED, about
from engines.params.model_kwargs import FAMILIES
from engines.params.sections import Section, sections
from engines.params.shapes import default_of, shape_of
from server.commands.params import COMMANDS, groups
from server.commands.supported import by_engine, whatever_the_engine
from training.params.task import TASKS, params_of
from training.refusals.supported import supported

PATH = Path(__file__).parents[2] / "docs" / "parameters.md"

INTRODUCTION = """\
# Parameters

<!-- Written by `make docs` from the parameter classes: change those. -->

Every command takes its parameters as flags, or from a YAML or JSON file that comes first; flags win over the file:

```
tuneserve deploy --model my/model --port 9000 --stop_words "###" "</answer>"
tuneserve deploy server.yaml --port 9000
```

Dashes and underscores mean the same, a list takes its values one after another, a yes-or-no parameter alone means
true, and a JSON object may also be the path of a JSON file. Where several things are wrong, all are told at once.
A `*` marks the parameters that most users meet first.
"""

FAMILIES_INTRODUCTION = """\
## model-specific

What `model_kwargs` may hold, by the model's type. Each is also read from the environment variable of its name; what
`model_kwargs` says goes before that.
"""


def write() -> None:
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(page(), encoding="utf-8")


def page() -> str:
    """The text of docs/parameters.md."""
    parts = [
        INTRODUCTION,
        _commands(),
        _supported(),
        _refused(),
        *(_section(section) for section in groups()),
        _families(),
    ]
    return "\n".join(parts)


def _commands() -> str:
    rows = [
        f"| `{name}` | {model.__doc__} | {', '.join(_link(section) for section in sections(model))} |"
        for name, model in COMMANDS.items()
    ]
    return "## Commands\n\n| command | what it is for | its parameters |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _supported() -> str:
    server = whatever_the_engine()
    engines = "".join(f"- the engine {engine}: {_names(by_engine(engine) - server)}\n" for engine in EVERY_ENGINE)
    return (
        "Where two sections define a parameter, the later one in this list counts.\n\n"
        "A parameter that this version does not support, or not with the chosen engine, is refused, never ignored.\n"
        f"Those that `deploy` supports, whatever the engine: {_names(server)}; and besides\n\n{engines}"
    )


def _refused() -> str:
    """What nothing reads, whatever the command."""
    read = set().union(*(supported(params_of(task)) for task in TASKS.values()))
    fields = [each for model in COMMANDS.values() for each in model.model_fields.items()]
    read |= {name for name, field in fields if about(field).readers or about(field).engines}
    said = {name: about(field) for name, field in fields if name not in read}
    rows = [
        f"| `{name}` | {each.not_in_training or each.not_in_deploy or NOT_SUPPORTED} |"
        for name, each in sorted(said.items())
    ]
    return (
        "## Not supported\n\nEvery value but the default is refused by every command, and so are all settings of"
        " [model families](#model-specific), which are about images, videos and sound.\n\n"
        "| parameter | why |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _link(section: Section) -> str:
    return f"[{section.title}](#{section.title.replace(' ', '-')})"


def _section(section: Section) -> str:
    return f"## {section.title}\n\n{section.description}\n\n{_table(section.fields, section.group.starred)}"


def _families() -> str:
    """The parameters that only some models have."""
    parts = [FAMILIES_INTRODUCTION]
    for family in FAMILIES:
        types = ", ".join(f"`{model_type}`" for model_type in family.model_types)
        parts.append(f"### {types}\n\n{family.__doc__}\n\n{_table(family.model_fields, family.starred)}")
    return "\n".join(parts)


def _table(fields: Mapping[str, FieldInfo], starred: frozenset[str]) -> str:
    rows = [_row(f"`{name}`{' *' if name in starred else ''}", field) for name, field in fields.items()]
    return "| parameter | value | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else default_of(field)
    cells = [
        name,
        str(shape_of(field.annotation)),
        "" if default is None else f"`{default}`",
        " ".join((field.description or "").split()),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    write()
