"""The self-cognition set: questions about who the model is, whose answers have a place for its name and its maker's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from engines.params.data import DataParams

NAMES = ("self-cognition", "swift/self-cognition")
FILES = {language: Path(__file__).with_name(f"self_cognition_{language}.jsonl") for language in ("en", "zh")}
CHINESE = re.compile("[\u4e00-\u9fff]")
PLACES = ("{{NAME}}", "{{AUTHOR}}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Each in Chinese and in English."""

    name: tuple[str, str]
    author: tuple[str, str]


def names(params: DataParams) -> Identity | None:
    """What to put into the places; None where neither was given. Raises InvalidRequest."""
    asked = any(re.split("[:#]", name)[0] in NAMES for name in (*params.dataset, *params.val_dataset))
    if params.model_name is None and params.model_author is None and not asked:
        return None
    for param, value in (("model_name", params.model_name), ("model_author", params.model_author)):
        if not value:
            raise InvalidRequest("say both model_name and model_author: the self-cognition set needs them", param=param)
    assert params.model_name is not None and params.model_author is not None
    return Identity(_both(params.model_name), _both(params.model_author))


def _both(value: tuple[str, ...]) -> tuple[str, str]:
    return value[0], value[-1]


def named(value: Any, identity: Identity, *, chinese: bool | None = None) -> Any:
    """The same with every place filled in, in the language that a row is in."""
    if isinstance(value, str):
        return _filled(value, identity, bool(chinese)) if "{{" in value else value
    if isinstance(value, Mapping):
        if chinese is None:
            chinese = value["tag"] == "zh" if value.get("tag") in ("zh", "en") else bool(CHINESE.search(str(value)))
        return {key: named(item, identity, chinese=chinese) for key, item in value.items()}
    if isinstance(value, list):
        return [named(item, identity, chinese=chinese) for item in value]
    return value


def _filled(text: str, identity: Identity, chinese: bool) -> str:
    which = 0 if chinese else 1
    for place, value in zip(PLACES, (identity.name[which], identity.author[which]), strict=True):
        text = text.replace(place, value)
    return text
