"""Which files of a model or an adapter on the hub are fetched, and which of their settings are not trusted.

The files come from anybody. Settings that describe the weights are kept; those that name other files, code or other
repositories are removed, or the repository is refused.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidAdapter
from engines.text.templates import TEMPLATES
from training.hub.repository import NotFetched, is_safe
from training.tuners import TUNERS
from training.tuners.adapter import AdapterTuner

MODEL = (
    "config.json", "generation_config.json", "*processor_config.json",
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer*.model", "*.tiktoken", "chat_template.json", "*.jinja",
    "*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
"""Files of a model, none of which is code."""
TWICE = "consolidated*"
"""Files with the same weights in the format of another library."""
MORE_TEMPLATES = "additional_chat_templates"
MODULES = ("megatron_config", "megatron_core", "auto_mapping", "base_model_name_or_path", "revision")
"""Settings of an adapter that name Python modules to import or other models to load: they are removed."""
WEIGHTS_OF = "transformers_weights"
"""Setting of config.json that names the file of the weights."""
FILES = re.compile(r".*_files?")
"""Settings of a tokenizer that name its files, which may be anywhere: they are removed, so that the usual files are
read."""
MAX_JSON = 64 << 20
"""Bytes of a configuration."""


def of_model(file: str) -> bool:
    folder, _, name = file.rpartition("/")
    if folder:
        return folder == MORE_TEMPLATES and name.endswith(".jinja")
    return any(fnmatch.fnmatchcase(name, each) for each in MODEL) and not fnmatch.fnmatchcase(name, TWICE)


def of_adapter(file: str) -> bool:
    return file in (CONFIG, WEIGHTS, *TEMPLATES)


def check_model(id: str, folder: Path) -> None:
    """Make sure that its configuration names nothing outside of it. Raises NotFetched."""
    if not any(folder.glob("*.safetensors")):
        raise NotFetched(f"{id!r} has no safetensors: weights are read from those only")
    config = _json(folder / "config.json", id)
    for name, value in _settings(config):  # transformers takes such a name for a repository with code to run
        if name.endswith("_implementation") and "/" in str(value):
            raise NotFetched(
                f"{id!r}: config.json has {name} {str(value)[:60]!r}, code of a repository, which is not run"
            )
    if WEIGHTS_OF in config:
        _check_file(config[WEIGHTS_OF], "config.json", id, folder)
    for index in folder.glob("*.index.json"):
        shards = _json(index, id).get("weight_map")
        for shard in set(shards.values()) if isinstance(shards, dict) else [None]:
            _check_file(shard, index.name, id, folder)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        _write(tokenizer, {name: value for name, value in _json(tokenizer, id).items() if not FILES.fullmatch(name)})


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All settings, also those of the parts of a model."""
    parts = [config]
    while parts:
        part = parts.pop()
        yield from part.items()
        parts += [value for value in part.values() if isinstance(value, dict)]


def _check_file(name: Any, where: str, id: str, folder: Path) -> None:
    if not isinstance(name, str) or not is_safe(name) or not (folder / name).is_file():
        raise NotFetched(f"{id!r}: {where} names {str(name)[:60]!r}, which is no file of its weights")


def check_adapter(id: str, folder: Path) -> None:
    """Make sure that its configuration names nothing outside of it. Raises NotFetched, InvalidAdapter."""
    config = _json(folder / CONFIG, id)
    kinds = sorted(tuner.peft_type for tuner in TUNERS.values() if isinstance(tuner, AdapterTuner))
    if config.get("peft_type") not in kinds:
        kind = str(config.get("peft_type"))[:60]
        raise InvalidAdapter(f"{id!r} is of type {kind!r}, and a job takes {', '.join(kinds)} from the hub")
    if not (folder / WEIGHTS).is_file():
        raise InvalidAdapter(f"{id!r} has no {WEIGHTS}: weights are read as safetensors only")
    _write(folder / CONFIG, {name: value for name, value in config.items() if name not in MODULES})


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a new file: the old one is shared with the cache."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def _json(path: Path, id: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_JSON else None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise NotFetched(f"{id!r} has no {path.name} that can be read")
    return content
