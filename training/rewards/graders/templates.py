"""Texts with references: `{{item.answer}}`, `{{sample.output_json.steps[0]}}`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from engines.errors import InvalidRequest
from training.rewards.graders.errors import GradeError

REFERENCE = re.compile(r"\{\{([^{}]*)\}\}")
PATH = re.compile(r"\s*(item|sample)((?:\.[\w-]+|\[\d{1,9}\]|\[\"[^\"\]]*\"\]|\['[^'\]]*'\])+)\s*")
STEP = re.compile(r"\.([\w-]+)|\[(\d+)\]|\[\"([^\"\]]*)\"\]|\['([^'\]]*)'\]")
SAMPLE = ("output_text", "output_json", "output_tools", "output_audio", "choices")
MAX_RENDERED = 1 << 20
"""Characters of a text with what its references stand for."""
MAX_TOLD = 100
Path = tuple[str | int, ...]


def references(template: str) -> list[tuple[str, Path]]:
    """The namespaces and paths that a text refers to. Raises InvalidRequest, which names what is no reference."""
    return [_parse(found[1]) for found in REFERENCE.finditer(template)]


def render(template: str, *, item: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """The text with what its references stand for; what is no string is written as JSON.

    Raises GradeError, which names the reference that leads nowhere.
    """
    room = MAX_RENDERED

    def value(found: re.Match[str]) -> str:
        nonlocal room
        text = _text(look_up(found[1], item=item, sample=sample))
        room -= len(text)
        if room < 0:
            raise GradeError("other_error", f"a text is longer than {MAX_RENDERED} characters with its references")
        return text

    return REFERENCE.sub(value, template)


def look_up(reference: str, *, item: Mapping[str, Any], sample: Mapping[str, Any]) -> Any:
    namespace, path = _parse(reference)
    value: Any = item if namespace == "item" else sample
    if namespace == "sample" and path[0] == "output_json" and sample.get("output_json") is None:
        raise GradeError("sample_parse_error", f"{{{{{_told(reference)}}}}}: the sample is not JSON")
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            raise GradeError("invalid_variable_error", f"{{{{{_told(reference)}}}}}: there is no {step!r}") from None
    return value


def _parse(reference: str) -> tuple[str, Path]:
    matched = PATH.fullmatch(reference)
    if matched is None:
        message = f"{{{{{_told(reference)}}}}} is no reference: write {{{{item.NAME}}}} or {{{{sample.NAME}}}}."
        raise InvalidRequest(message)
    path: Path = tuple(int(step[2]) if step[2] else step[1] or step[3] or step[4] for step in STEP.finditer(matched[2]))
    if matched[1] == "sample" and path[0] not in SAMPLE:
        choices = ", ".join(SAMPLE)
        raise InvalidRequest(f"{{{{{_told(reference)}}}}}: a sample has no {path[0]!r}; it has {choices}.")
    return matched[1], path


def _told(reference: str) -> str:
    return reference.strip()[:MAX_TOLD]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
