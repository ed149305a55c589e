"""Writing a model in another form: merged, quantised, or to the hub."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from engines.params.about import EXPORT, MERGE, THE_SERVER, About
from engines.params.common import BaseParams
from engines.params.merge import MergeLoraParams
from engines.params.quantization import LOADED
from training.params.export_forms import FormParams
from training.params.sft import SftParams

ExportMethod = Literal["gptq", "awq", "fp8", "w8a8", "bnb", "hqq", "torchao"]
READ_OF_DATA = frozenset({"model", "model_revision", "hub_token", "dataset", "data_seed", "strict"})
"""Parameters that reading and encoding a data set takes from those of an export."""


class ExportParams(FormParams, MergeLoraParams, BaseParams):
    """Writing a model in another form: merged, quantised, as GGUF, or to the hub."""

    starred: ClassVar = frozenset({"output_dir", "quant_method", "push_to_hub"})

    output_dir: Annotated[str | None, About(MERGE, not_in_api=THE_SERVER)] = None
    """Folder for the result. Beside the checkpoint, named after what was done, unless given."""
    quant_method: Annotated[ExportMethod | None, About(EXPORT)] = None  # type: ignore[assignment]  # two meanings there
    """How the linear layers' weights, but for the output head's, are quantised in the result. `gptq` and `awq` measure
    on a data set which weights matter; `fp8` and `w8a8` quantise the activations too, while the model runs; `bnb`,
    `hqq` and `torchao` are those libraries' own forms. The reference documents the first two. Not quantised unless
    given."""
    quant_n_samples: Annotated[int, About(EXPORT)] = Field(128, ge=1)
    """For gptq and awq: samples of `dataset` that quantisation measures the weights' influence on."""
    max_length: Annotated[int, About(EXPORT)] = Field(2048, ge=1)
    """For gptq and awq: the most tokens of such a sample. What is longer is cut."""
    quant_batch_size: Annotated[int, About(EXPORT)] = Field(1, ge=1)
    """For gptq and awq: such samples of one forward pass."""
    group_size: Annotated[int, About(EXPORT)] = Field(128, ge=-1)
    """For gptq and awq: how many weights of a row share a scale; -1: all of it. It has to divide the inputs of each
    layer: one that does not is refused with those that do."""
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


def calibration_data(params: ExportParams) -> SftParams | None:
    """The data set that quantisation measures on, as a training would read it; None: there is none."""
    if not params.dataset:
        return None
    names = params.model_fields_set & READ_OF_DATA
    said = {name: getattr(params, name) for name in (*names, "max_length")}
    whole = {"split_dataset_ratio": 0, "truncation_strategy": "right", "loss_scale": "all"}
    return SftParams.model_validate(said | whole)
