"""args.json: the parameters that a checkpoint was trained with, beside its weights, for `load_args` to read back."""

import json
from pathlib import Path
from typing import Any, TypeVar

from engines.errors import InvalidRequest
from engines.params.data import DataParams
from engines.params.generation import GenerationParams
from training.params.honoured import HONOURED
from training.params.sft import SftParams

ARGS = "args.json"
SECRET = frozenset({"hub_token"})
NOT_LOADED = frozenset(GenerationParams.model_fields) | {
    "output_dir", "add_version", "resume_from_checkpoint", "resume_only_model", "load_args", "load_data_args",
    "adapters", "max_new_tokens", "temperature", "push_to_hub", "hub_model_id", "hub_private_repo",
} | SECRET  # fmt: skip
"""What belongs to one run only."""

P = TypeVar("P", bound=SftParams)


def write_args(params: SftParams, folder: Path) -> None:
    """All parameters, and under `given` the names of those that were not left at their defaults."""
    values = params.model_dump(mode="json", exclude=set(SECRET))
    given = sorted(params.model_fields_set - SECRET)
    (folder / ARGS).write_text(json.dumps(values | {"given": given}, indent=1, ensure_ascii=False) + "\n")


def with_saved_args(params: P) -> P:
    """`params` with what the checkpoint that it names was trained with, for what it does not say itself.

    Raises InvalidRequest where that file is broken.
    """
    if not params.load_args:
        return params
    folder = next((folder for folder in _checkpoints(params) if (folder / ARGS).is_file()), None)
    if folder is None:
        return params
    left_out = NOT_LOADED if params.load_data_args else NOT_LOADED | frozenset(DataParams.model_fields)
    saved = _read(folder)
    read = HONOURED[type(params)]  # a task of another kind may have been given what this one does not know
    loaded = {name: saved[name] for name in saved["given"] if name in read and name not in left_out}
    given = {name: getattr(params, name) for name in params.model_fields_set}
    if "model" in given and params.model and Path(params.model).expanduser() == folder:
        loaded.pop("model", None)
    return type(params).model_validate(loaded | given)


def _checkpoints(params: SftParams) -> list[Path]:
    adapters = [source.partition("=")[2] or source for source in params.adapters]
    named = [params.resume_from_checkpoint, *adapters, params.model]
    return [Path(name).expanduser() for name in named if name]


def _read(folder: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads((folder / ARGS).read_bytes())
        saved["given"] = list(saved["given"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"{ARGS} of {folder.name} cannot be read ({error}): repair it, or set load_args to false"
        raise InvalidRequest(message, param="load_args") from error
    return saved
