"""What an inference runs: its parameters with those of the checkpoint that answers, and that checkpoint merged where it
is to be."""

from pathlib import Path

from engines.errors import InvalidRequest
from engines.params.about import facts
from training.folder import JobFolder
from training.params.export import MergeParams
from training.params.infer import AnswerParams
from training.pipelines import load_args
from training.report import Report

LIKE_THE_MODEL = frozenset(name for name, said in facts(AnswerParams) if said.as_served)
"""Parameters by which a model is served as it was trained."""


def with_checkpoint(params: AnswerParams) -> AnswerParams:
    """`params` with what the checkpoint was trained with, where it is to be loaded with that.

    Raises InvalidRequest, also where nothing names a model.
    """
    wanted = LIKE_THE_MODEL | {"model"}
    if params.load_data_args and not params.names_data:
        wanted |= load_args.OF_DATA
    loaded = load_args.with_saved_args(params, wanted)
    if loaded.rope_scaling is not None and loaded.max_length is None:  # which says for how many tokens
        loaded = load_args.with_saved_args(params, wanted | {"max_length"})
    if not loaded.model:
        message = "name the model, a folder or an id on the hub: neither the adapters nor an args.json beside them do"
        raise InvalidRequest(message, param="model")
    return loaded


def merged(params: AnswerParams, report: Report) -> AnswerParams:
    """`params` with the model that comes of merging its adapters, in the job's folder. Raises TuneserveError."""
    if not params.merge_lora:
        return params
    from training.pipelines import merge

    names = params.model_fields_set & MergeParams.model_fields.keys() - {"max_length", "quant_method"}
    merging = MergeParams.model_validate({name: getattr(params, name) for name in names})
    if params.quant_method is not None:
        merging = merging.model_copy(update={"quant_method": params.quant_method})
    folder = merged_folder(report.folder)
    if not folder.exists():
        merge.run(merging, report)
    return params.model_copy(update={"model": str(folder), "adapters": (), "merge_lora": False, "quant_method": None})


def merged_folder(folder: JobFolder) -> Path:
    from training.pipelines.merge import OUTPUT

    return folder.path / OUTPUT
