"""Derive an argument parser from a parameter class, and validated parameters from words and files.

One rule for each shape: a list takes any number of values, a bool takes true, false or nothing, an object takes JSON
or the path of a JSON file. Pydantic does the rest, so that the command line, REST bodies and documentation refuse the
same values in the same words.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from engines.params.about import secrets
from engines.params.base import Params
from engines.params.sections import sections
from engines.params.shapes import default_of, shape_of
from server.commands.other_names import OTHER_NAMES, SAMPLED
from server.commands.parameter_file import read_parameters

P = TypeVar("P", bound=Params)

SCIENTIFIC = re.compile(r"-(\d+\.?\d*|\.\d+)e[-+]?\d+", re.IGNORECASE)
"""Negative numbers that argparse takes for flags."""


def parse(model: type[P], argv: Sequence[str], *, prog: str, unsupported: Container[str] = ()) -> P:
    """Return `model` built from `argv`: a file of parameters, if it comes first, and flags, which win over the file.

    Help marks the parameters in `unsupported`.
    Where anything is wrong, write all of it to stderr, one line each, and exit with status 2.
    """
    words = list(argv)
    file = words.pop(0) if words and not words[0].startswith("-") else None
    flags, strays = build_parser(model, prog=prog, unsupported=unsupported).parse_known_args(_spelled(words))
    try:
        in_file = {} if file is None else read_parameters(Path(file))
    except ValueError as error:
        refuse(prog, [str(error)])
    labels = {name: f"{name} in {file}" for name in in_file} | {name: f"--{name}" for name in vars(flags)}
    values, problems = _values(model, in_file | vars(flags), labels)
    problems = _strayed(strays, model) + problems
    try:
        params = model.model_validate(values)
    except ValidationError as error:
        refuse(prog, problems + _worded(error, model, labels))
    if problems:
        refuse(prog, problems)
    return params


def refuse(prog: str, problems: Iterable[str]) -> NoReturn:
    """Write what is wrong to stderr, one line each, and exit with status 2."""
    lines = "".join(f"  {problem}\n" for problem in problems)
    sys.stderr.write(f"{prog}: error:\n{lines}`{prog} --help` describes every parameter.\n")
    sys.exit(2)


def build_parser(model: type[Params], *, prog: str, unsupported: Container[str] = ()) -> argparse.ArgumentParser:
    """Return a parser with a section for each group that the model is composed of. What is not given is not set."""
    parser = argparse.ArgumentParser(
        prog,
        usage=f"{prog} [FILE.yaml|FILE.json] [--PARAMETER VALUE ...]",
        description=f"{model.__doc__} A file of parameters may come first; flags win over it. "
        "A * marks the parameters that most users meet first.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for section in sections(model):
        group = parser.add_argument_group(section.title, section.description)
        for name, field in section.fields.items():
            options = _argument(field, starred=name in section.group.starred, unsupported=name in unsupported)
            group.add_argument(f"--{name}", action=_Once, **options)
    return parser


class _Once(argparse.Action):
    """Store the value, and refuse a second one instead of forgetting the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if self.dest in namespace:
            parser.error(f"{option} is given twice")
        setattr(namespace, self.dest, values)


def _argument(field: FieldInfo, *, starred: bool, unsupported: bool) -> dict[str, Any]:
    shape, default = shape_of(field.annotation), default_of(field)
    note = "required" if field.is_required() else default and f"default: {default}"
    text = ("* " if starred else "") + " ".join((field.description or "").split()) + (f" ({note})" if note else "")
    text += " (not supported yet)" if unsupported else ""
    options: dict[str, Any] = {"metavar": str(shape), "help": text.replace("%", "%%")}
    if tuple in shape.kinds:
        options["nargs"] = "*"
    if bool in shape.kinds:
        options |= {"nargs": "?", "const": True}
    return options


def _spelled(words: Sequence[str]) -> list[str]:
    """Write flags with underscores, and join to its flag a number that argparse would take for another flag."""
    spelled: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            spelled.append("--" + flag[2:].replace("-", "_") + equals + value)
        elif SCIENTIFIC.fullmatch(word) and spelled and spelled[-1].startswith("--"):
            spelled[-1] += f"={word}"
        else:
            spelled.append(word)
    return spelled


def _values(
    model: type[Params], given: Mapping[str, Any], labels: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """What pydantic is to judge: the given values of known names, objects read. And what is wrong before that."""
    values, problems = {}, []
    for name, value in given.items():
        field = model.model_fields.get(name)
        if field is None:
            problems.append(_unknown(labels[name], name, model))
            continue
        is_object = dict in shape_of(field.annotation).kinds and isinstance(value, str)
        try:
            values[name] = _object_or_text(value) if is_object else value
        except (ValueError, OSError) as error:
            problems.append(f"{labels[name]}: {error}")
    return values, problems


def _object_or_text(text: str) -> Any:
    """The JSON object that the text or the file it names holds; else the text, which may be a name."""
    try:
        content = Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text
        return json.loads(content) if content.lstrip().startswith("{") else text
    except json.JSONDecodeError as error:
        raise ValueError(f"{text:.80} is not JSON: {error}") from None


def _worded(error: ValidationError, model: type[Params], labels: Mapping[str, str]) -> list[str]:
    """One line for each wrong value, in pydantic's words; what the branches of a union say is told together."""
    words: dict[tuple[str, str], list[str]] = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0])
        quoted = problem["type"] != "missing" and name not in secrets(model)
        given = f" (given {problem['input']!r:.80})" if quoted else ""
        told = words.setdefault((labels.get(name, f"--{name}"), given), [])
        told.append(problem["msg"].removeprefix("Value error, "))
    return [f"{label}: {'; or: '.join(told)}{given}" for (label, given), told in words.items()]


def _strayed(strays: Sequence[str], model: type[Params]) -> list[str]:
    """What argparse could not place. Words after an unknown flag belong to it, and are not told of."""
    flags = [word.partition("=")[0] for word in strays if word.startswith("-")]
    return [_unknown(flag, flag, model) for flag in flags] or [
        f"{word!r} belongs to no parameter (a file comes first)" for word in strays
    ]


def _unknown(label: str, name: str, model: type[Params]) -> str:
    written = name.lstrip("-").replace("-", "_")
    meant = OTHER_NAMES.get(written, "")
    nearest = [meant] if meant in model.model_fields else difflib.get_close_matches(written, model.model_fields, n=1)
    example = f" (500 rows of a set are --{meant} NAME#500)" if written in SAMPLED and meant in nearest else ""
    return f"{label}: unknown parameter" + (f"; did you mean --{nearest[0]}?{example}" if nearest else "")
