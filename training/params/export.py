"""Writing a model in another form: merged, quantised, or to the hub."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import field_validator

from engines.adapters.source import name_adapters
from engines.errors import Conflict
from engines.params.about import MERGE, THE_SERVER, About
from engines.params.merge import MergeLoraParams
from engines.params.quantization import LOADED
from training.params.export_forms import FormParams
from training.params.export_quantization import QuantizedExportParams, bits_of
from training.params.sft import SftParams

READ_OF_DATA = frozenset({"model", "model_revision", "hub_token", "dataset", "data_seed", "strict"})
"""Parameters that reading and encoding a data set takes from those of an export."""


class ExportParams(FormParams, MergeLoraParams, QuantizedExportParams):
    """Writing a model in another form: merged, quantised, as GGUF, or to the hub."""

    starred: ClassVar = frozenset({"output_dir", "push_to_hub"})

    output_dir: Annotated[str | None, About(MERGE, not_in_api=THE_SERVER)] = None
    """Folder for the result. Beside the checkpoint, named after what was done, unless given."""
    push_to_hub: Annotated[bool, About(MERGE, not_in_api=THE_SERVER)] = False
    """Upload the result to the hub, with hub_token or the account that is logged in there."""
    hub_model_id: Annotated[str | None, About(MERGE, not_in_api=THE_SERVER)] = None
    """Name of the repository that it is uploaded to, which is made where it is not there yet. That of the result's
    folder unless given."""
    hub_private_repo: Annotated[bool, About(MERGE, not_in_api=THE_SERVER)] = False
    """Make that repository private, where it has to be created."""
    commit_message: Annotated[str, About(MERGE, not_in_api=THE_SERVER)] = "update files"
    """Message of the commit that the upload makes."""


class MergeParams(ExportParams):
    """Adding a trained adapter to its base model: export with `merge_lora`."""

    quant_method: Annotated[Literal["bnb", "hqq", "eetq", "torchao"] | None, LOADED] = None  # type: ignore[assignment]
    """How the base model was quantised when the adapter was trained, where args.json beside the adapter does not say.
    The adapter is then merged into what quantising leaves of the weights."""
    merge_lora: Annotated[bool, About(MERGE, choices=(True,))] = True
    """Merging is what this command does: never false."""

    @field_validator("merge_lora")
    @classmethod
    def _always(cls, merge_lora: bool) -> bool:
        if not merge_lora:
            raise ValueError("merging is what this command does; export is the one that may leave it")
        return merge_lora


def made_of(params: ExportParams) -> str:
    """What is done to the model, in a word for the name of a folder: `merged-gptq-int4`, `gguf-q4_k_m`."""
    done = ["merged"] if params.merge_lora else []
    if params.quant_method is not None:
        bits = bits_of(params)
        done.append(
            params.quant_method if params.quant_method in ("fp8", "w8a8") else f"{params.quant_method}-int{bits}"
        )
    if params.to_gguf is not None:
        done.append(f"gguf-{params.to_gguf}")
    done += [word for word, asked in (("ollama", params.to_ollama), ("peft", params.to_peft_format)) if asked]
    return "-".join(done) or "exported"


def calibration_data(params: ExportParams) -> SftParams | None:
    """The data set that quantisation measures on, as a training would read it; None: there is none."""
    if not params.dataset:
        return None
    names = params.model_fields_set & READ_OF_DATA
    said = {name: getattr(params, name) for name in (*names, "max_length")}
    whole = {"split_dataset_ratio": 0, "truncation_strategy": "right", "loss_scale": "all"}
    return SftParams.model_validate(said | whole)


def result_folder(params: ExportParams, suffix: str) -> Path:
    """Where the result is to be: `<adapter>-<suffix>` beside the last adapter, or beside the model where there is none,
    unless `output_dir` says.

    Raises Conflict where there is something already, InvalidAdapter.
    """
    if params.output_dir:
        folder = Path(params.output_dir).expanduser()
    else:
        sources = [*name_adapters(params.adapters).values()] or [params.model or ""]
        beside = Path(sources[-1]).expanduser().resolve()
        parent = beside.parent if beside.is_dir() else Path("output")
        folder = parent / f"{beside.name}-{suffix}"
    if folder.exists():
        raise Conflict(f"{folder} is there already: remove it, or give another output_dir", param="output_dir")
    return folder.absolute()
