"""What `load_args` takes from the args.json of the checkpoint that a training goes on from, or that answers."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from engines.adapters.source import name_adapters
from engines.params.about import facts
from engines.params.common import BaseParams
from engines.params.data import DataParams
from training.methods import METHODS
from training.optimizers import OPTIMIZERS
from training.params.mixing import MixingParams
from training.params.saved_args import base_of, read_given
from training.params.sft import SftParams
from training.refusals.supported import supported
from training.tuners import TUNERS

P = TypeVar("P", bound=BaseParams)

OF_DATA = frozenset({*DataParams.model_fields, *MixingParams.model_fields, "custom_register_path"})
CODE = frozenset({"reward_funcs"})
"""Parameters that name files whose code is run: only whoever starts the training says those."""
INSTEAD = (
    ("template", "chat_template"),
    ("target_modules", "target_regex"),
    ("boft_block_size", "boft_block_num"),
    ("num_train_epochs", "max_steps"),
)
"""Of these, one takes the place of the other."""


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
    known = type(params).model_fields.keys() & loadable
    loaded = {name: value for name, value in saved.items() if name in known}
    given = {name: getattr(params, name) for name in params.model_fields_set}
    if "model" in given and params.model and Path(params.model).expanduser() == folder:
        loaded.pop("model", None)
    if isinstance(params, SftParams):
        loaded = {name: value for name, value in loaded.items() if name not in _of_another(params, saved)}
    for pair in INSTEAD:
        if given.keys() & set(pair):
            loaded = {name: value for name, value in loaded.items() if name not in pair}
    return _with_base(type(params).model_validate(loaded | given))


def _with_base(params: P) -> P:
    """`params` with the base model that the adapter names, where nothing else names one."""
    if params.model or not params.adapters:
        return params
    base, revision = base_of(Path(next(iter(name_adapters(params.adapters).values()))).expanduser())
    revision = params.model_revision or revision
    return params.model_copy(update={"model": base, "model_revision": revision}) if base else params


def _of_another(params: SftParams, saved: Mapping[str, Any]) -> frozenset[str]:
    """What a method, a tuner or an optimizer reads, where the checkpoint was trained by another one than is asked for:
    the same name means another thing there, or nothing."""
    found: set[str] = set()
    if _method(saved.get("rlhf_type"), saved.get("task_type")) != _method(params.method, params.task_type):
        found.update(*(method.reads for method in METHODS.values()))
    if "train_type" in params.model_fields_set and params.train_type != saved.get("train_type", "lora"):
        found.update(*(tuner.reads for tuner in TUNERS.values()), *(each.reads for each in OPTIMIZERS))
    return frozenset(found)


def _method(name: str | None, task_type: str | None) -> str:
    """As what a method goes whose name only preferences and rewards have in their parameters."""
    return name if name not in (None, "sft", "pt", "seq_cls") else f"sft of {task_type or 'causal_lm'}"


def _loadable(params: BaseParams) -> frozenset[str]:
    """What a checkpoint may say. One of a task of another kind may say what this one does not know."""
    one_run = {name for name, said in facts(type(params)) if said.one_run}
    return supported(type(params)) - one_run - CODE - (frozenset() if params.load_data_args else OF_DATA)


def _checkpoints(params: BaseParams) -> list[Path]:
    adapters = [source.partition("=")[2] or source for source in params.adapters]
    named = [getattr(params, "resume_from_checkpoint", None), *adapters, params.model]
    return [Path(name).expanduser() for name in named if name]
