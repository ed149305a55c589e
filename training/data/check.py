"""A look at the data of a job before anything is loaded for it: what is wrong, and where; how much there is.

Reads the files once, a row at a time. Data sets of the hub, and those that a Python file makes, are not looked at here:
the training finds out.
"""

import json
import math
import struct
from pathlib import Path

from engines.errors import InvalidRequest, TuneserveError
from engines.params.common import BaseParams
from training.data.aside import nothing_aside, rows_aside
from training.data.problems import BadData
from training.data.rows import Account, usable
from training.data.samples import Learns
from training.data.sources import Param, Source, sources
from training.folder import JobError, Validation
from training.params.evaluation import given_for_evaluation
from training.params.sft import SftParams

MAX_HEADER = 100 << 20
"""Bytes of a safetensors header, by its specification."""


def check(params: SftParams, *, learns: Learns) -> Validation:
    try:
        rows = _rows(params, "dataset", learns)
        _rows(params, "val_dataset", learns)
        _check_evaluation(params, rows)
    except TuneserveError as error:
        return Validation(
            error=JobError(code=error.code or "invalid_request", message=error.message, param=error.param)
        )
    except OSError as error:  # a name that no file can have, a folder that must not be read
        message = f"the data cannot be read: {error}"
        return Validation(error=JobError(code=BadData.code, message=message, param="dataset"))
    return Validation(rows=rows, model_parameters=model_parameters(params))


def check_prompts(params: BaseParams) -> Validation:
    """The same for rows that a model is to answer."""
    param: Param = "val_dataset" if params.val_dataset else "dataset"
    try:
        return Validation(rows=_rows(params, param, "prompts"))
    except TuneserveError as error:
        code = error.code or "invalid_request"
        return Validation(error=JobError(code=code, message=error.message, param=error.param))
    except OSError as error:
        message = f"the data cannot be read: {error}"
        return Validation(error=JobError(code=BadData.code, message=message, param=param))


def _check_evaluation(params: SftParams, rows: int) -> None:
    """Raises InvalidRequest for a parameter of the evaluation, where the data leaves nothing to evaluate."""
    if params.val_dataset or params.streaming or any(not source.files for source in sources(params, "dataset")):
        return
    for name in given_for_evaluation(params):
        if not rows_aside(params, rows):
            raise InvalidRequest(nothing_aside(params, rows), param=name)


def _rows(params: BaseParams, param: Param, learns: Learns) -> int:
    """Usable rows. Raises BadData."""
    found = sources(params, param)
    if param == "dataset" and not found:
        raise BadData("there is no data to train on: name a file, a folder or a data set of the hub", param=param)
    return sum(_source_rows(source, params, learns) for source in found if source.files)


def _source_rows(source: Source, params: BaseParams, learns: Learns) -> int:
    rows = sum(1 for _ in usable(source, params, learns, Account()))
    return rows if source.count is None else source.count


def model_parameters(params: SftParams) -> int | None:
    """Weights of the model, as its safetensors files say; None where they are not on this machine."""
    folder = _model_folder(params)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    try:
        return sum(map(_weights, files)) or None
    except (OSError, ValueError, KeyError, struct.error):
        return None


def _model_folder(params: SftParams) -> Path | None:
    if not params.model:
        return None
    local = Path(params.model).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(params.model, "config.json", revision=params.model_revision)
    except ValueError:  # it is no id
        return None
    return Path(config).parent if isinstance(config, str) else None


def _weights(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"{path.name} has no safetensors header")
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
