"""Read args.json: the parameters that a checkpoint was trained with, beside its weights."""

import json
from pathlib import Path
from typing import Any

from engines.adapters.spec import CONFIG
from engines.errors import InvalidRequest

ARGS = "args.json"
GIVEN = "given"
"""What it calls the names of those that were not left at their defaults."""
ROWS = "rows"
"""What it calls the number of samples and the digest of what they hold."""
BEGINNING = ("model", "adapters")
"""Parameters that say what a training had before its first step."""


def read_args(folder: Path) -> dict[str, Any]:
    """All that it says; nothing where there is no such file."""
    try:
        saved = json.loads((folder / ARGS).read_bytes())
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def read_given(folder: Path) -> dict[str, Any] | None:
    """The parameters that were given to the training of a checkpoint; None where it says nothing of them.

    ms-swift writes a file of this name, too, which does not say what was given: it counts as none.

    Raises InvalidRequest where the file is broken.
    """
    try:
        saved = json.loads((folder / ARGS).read_bytes())
        if isinstance(saved, dict) and GIVEN not in saved:
            return None
        return {name: saved[name] for name in saved[GIVEN]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"{ARGS} of {folder.name} cannot be read ({error}): repair it, or remove it"
        raise InvalidRequest(message, param="load_args") from error


def read_beginning(checkpoint: Path) -> dict[str, Any]:
    """What the training of `checkpoint` began with, as parameters. Raises InvalidRequest."""
    saved = read_given(checkpoint) or {}
    return {name: saved[name] for name in BEGINNING if name in saved}


def base_of(folder: Path) -> tuple[str | None, str | None]:
    """The base model of a checkpoint or adapter, and its revision; None where nothing says it.

    An adapter of a server's job names it without its folder, which args.json beside the adapter has.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (OSError, ValueError, AttributeError):
        base, revision = None, None
    saved = read_args(folder)
    if saved.get("model") and not (base and Path(base).exists()):
        base, revision = saved["model"], saved.get("model_revision")
    return base or None, revision
