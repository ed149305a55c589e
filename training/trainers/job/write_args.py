"""Write args.json: the parameters of a training, in its folder and in each checkpoint."""

import json
from pathlib import Path
from typing import Any

from training.data.digest import Rows
from training.params.saved_args import ARGS, GIVEN, ROWS
from training.params.sft import SftParams
from training.tuners import tuner_of


def write_args(params: SftParams, folder: Path, model: Any = None, rows: Rows | None = None) -> None:
    """All parameters, under GIVEN the names of those that were not left at their defaults, and what tells `rows` from
    others.

    Where training goes on with an adapter, those that would have made another are left out, and what that adapter is
    stands in their place as soon as there is the `model` that holds it.
    """
    values = params.model_dump(mode="json")
    tuner = tuner_of(params)
    if tuner.makes == "adapter" and (params.adapters or params.resume_only_model):
        shape = {} if model is None else tuner.shape(model)
        values = {name: value for name, value in values.items() if name not in tuner.reads} | shape
    given = sorted(params.model_fields_set & values.keys())
    told = {} if rows is None else {ROWS: list(rows)}
    (folder / ARGS).write_text(json.dumps(values | told | {GIVEN: given}, indent=1, ensure_ascii=False) + "\n")
