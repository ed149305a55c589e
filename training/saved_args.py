"""args.json: the parameters that a checkpoint was trained with, beside its weights."""

import json
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.tuners import tuner_of

ARGS = "args.json"
BEGINNING = ("model", "adapters")
"""Parameters that say what a training had before its first step."""


def read_args(folder: Path) -> dict[str, Any]:
    """What `write_args` wrote to `folder`; nothing where there is no such file."""
    try:
        saved: dict[str, Any] = json.loads((folder / ARGS).read_bytes())
    except (OSError, ValueError):
        return {}
    return saved


def write_args(params: SftParams, folder: Path, model: Any = None) -> None:
    """All parameters, and under `given` the names of those that were not left at their defaults.

    Where training goes on with an adapter, those that would have made another are left out, and what that adapter is
    stands in their place as soon as there is the `model` that holds it.
    """
    values = params.model_dump(mode="json")
    tuner = tuner_of(params)
    if tuner.makes == "adapter" and (params.adapters or params.resume_only_model):
        shape = {} if model is None else tuner.shape(model)
        values = {name: value for name, value in values.items() if name not in tuner.reads} | shape
    given = sorted(params.model_fields_set & values.keys())
    (folder / ARGS).write_text(json.dumps(values | {"given": given}, indent=1, ensure_ascii=False) + "\n")


def read_given(folder: Path) -> dict[str, Any] | None:
    """The parameters that were given to the training of a checkpoint; None where it says nothing of them.

    Raises InvalidRequest where the file is broken.
    """
    try:
        saved = json.loads((folder / ARGS).read_bytes())
        return {name: saved[name] for name in saved["given"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"{ARGS} of {folder.name} cannot be read ({error}): repair it, or remove it"
        raise InvalidRequest(message, param="load_args") from error


def read_beginning(checkpoint: Path) -> dict[str, Any]:
    """What the training of `checkpoint` began with, as parameters. Raises InvalidRequest."""
    saved = read_given(checkpoint) or {}
    return {name: saved[name] for name in BEGINNING if name in saved}
