"""What `load_args` takes from the args.json of the checkpoint that a training goes on from, or that answers."""

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from engines.params.about import facts
from engines.params.common import BaseParams
from engines.params.data import DataParams
from training.params.saved_args import read_given
from training.refusals.supported import supported

P = TypeVar("P", bound=BaseParams)

OF_DATA = frozenset({*DataParams.model_fields, "custom_register_path"})


def with_saved_args(params: P, loadable: Collection[str] | None = None) -> P:
    """`params` with what the checkpoint that it names was trained with, for what it does not say itself.
    `loadable`: parameters that may be taken; those of a training unless given.

    Raises InvalidRequest where that file is broken.
    """
    if not params.load_args:
        return params
    found = ((folder, saved) for folder in _checkpoints(params) if (saved := read_given(folder)) is not None)
    folder, saved = next(found, (None, {}))
    loadable = _loadable(params) if loadable is None else loadable
    loaded = {name: value for name, value in saved.items() if name in loadable}
    given = {name: getattr(params, name) for name in params.model_fields_set}
    if "model" in given and params.model and Path(params.model).expanduser() == folder:
        loaded.pop("model", None)
    if {"template", "chat_template"} & given.keys():  # one of them takes the place of the other
        loaded = {name: value for name, value in loaded.items() if name not in ("template", "chat_template")}
    return type(params).model_validate(loaded | given)


def _loadable(params: BaseParams) -> frozenset[str]:
    """What a checkpoint may say. One of a task of another kind may say what this one does not know."""
    one_run = {name for name, said in facts(type(params)) if said.one_run}
    return supported(type(params)) - one_run - (frozenset() if params.load_data_args else OF_DATA)


def _checkpoints(params: BaseParams) -> list[Path]:
    adapters = [source.partition("=")[2] or source for source in params.adapters]
    named = [getattr(params, "resume_from_checkpoint", None), *adapters, params.model]
    return [Path(name).expanduser() for name in named if name]
