"""args.json: the parameters that a checkpoint was trained with, beside its weights."""

import json
from pathlib import Path
from typing import Any

from training.params.sft import SftParams

ARGS = "args.json"


def read_args(folder: Path) -> dict[str, Any]:
    """What `write_args` wrote to `folder`; nothing where there is no such file."""
    try:
        saved: dict[str, Any] = json.loads((folder / ARGS).read_bytes())
    except (OSError, ValueError):
        return {}
    return saved


def write_args(params: SftParams, folder: Path) -> None:
    """All parameters, and under `given` the names of those that were not left at their defaults."""
    values = params.model_dump(mode="json")
    given = sorted(params.model_fields_set & values.keys())
    (folder / ARGS).write_text(json.dumps(values | {"given": given}, indent=1, ensure_ascii=False) + "\n")
