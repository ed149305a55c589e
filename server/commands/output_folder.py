"""Where the results of a training go."""

import itertools
import re
import time
from pathlib import Path

from engines.adapters.source import name_adapters
from engines.errors import Conflict, InvalidRequest
from training.folder import JobFolder
from training.params.saved_args import base_of
from training.params.sft import SftParams

VERSION = re.compile(r"v(\d+)-")


def new_training_folder(params: SftParams) -> Path:
    """Make the folder of a training: `output/<model>/v0-<time>`, or as `output_dir` and `add_version` say.

    Raises InvalidRequest where nothing names a model, Conflict where something was learned in the folder, OSError.
    """
    parent = Path(params.output_dir or Path("output", Path(_model(params)).name)).expanduser()
    if params.add_version:
        return _new_version(parent)
    if not JobFolder(parent).clear():
        message = f"{parent} holds an earlier run: give another output_dir, or leave add_version true"
        raise Conflict(message, param="output_dir")
    parent.mkdir(parents=True, exist_ok=True)
    return parent.resolve()


def new_eval_folder(output: Path, name: str) -> Path:
    """A folder of an evaluation that is not there yet: `NAME-<time>`, to be made whole elsewhere and renamed."""
    begun = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{begun}-{number}" if number else begun for number in itertools.count())
    return next(output / each for each in names if not (output / each).exists()).absolute()


def _model(params: SftParams) -> str:
    """What is trained: as given, or as a checkpoint that training goes on from says. Raises InvalidRequest."""
    if params.model:
        return params.model
    for checkpoint in filter(None, (*name_adapters(params.adapters).values(), params.resume_from_checkpoint)):
        base, _ = base_of(Path(checkpoint).expanduser())
        if base:
            return base
    raise InvalidRequest("name the model to train, a folder or an id on the hub", param="model")


def _new_version(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        versions = [int(found[1]) for path in parent.iterdir() if (found := VERSION.match(path.name))]
        folder = parent / f"v{max(versions, default=-1) + 1}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process was faster
            continue
        return folder.resolve()
