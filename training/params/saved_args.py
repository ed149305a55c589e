"""Read args.json: the parameters that a checkpoint was trained with, beside its weights."""

import json
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest

ARGS = "args.json"
GIVEN = "given"
"""What it calls the names of those that were not left at their defaults."""
BEGINNING = ("model", "adapters")
"""Parameters that say what a training had before its first step."""


def read_args(folder: Path) -> dict[str, Any]:
    """All that it says; nothing where there is no such file."""
    try:
        saved: dict[str, Any] = json.loads((folder / ARGS).read_bytes())
    except (OSError, ValueError):
        return {}
    return saved


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
