"""Writing a model in another form: merged, quantised, or to the hub."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from engines.adapters.source import name_adapters
from engines.errors import Conflict
from engines.params.about import MERGE, THE_SERVER, About
from engines.params.common import BaseParams
from engines.params.merge import MergeLoraParams
from engines.params.quantization import LOADED


class ExportParams(MergeLoraParams, BaseParams):
    """Writing a model in another form: merged, quantised, or to the hub."""

    starred: ClassVar = frozenset({"output_dir", "quant_method", "push_to_hub"})

    output_dir: Annotated[str | None, About(MERGE, not_in_api=THE_SERVER)] = None
    """Folder for the result. Beside the checkpoint, named after what was done, unless given."""
    quant_method: Literal["gptq", "awq"] | None = None  # type: ignore[assignment]  # one name, two meanings, as there
    """How the weights are quantised in the result: `gptq` or `awq`. Not quantised unless given."""
    quant_n_samples: int = Field(128, ge=1)
    """Samples of the data set that quantisation measures the weights' influence on."""
    max_length: int = Field(2048, ge=1)
    """The most tokens of such a sample."""
    quant_batch_size: int = Field(1, ge=1)
    """Such samples of one forward pass."""
    group_size: int = Field(128, ge=-1)
    """How many weights share a scale; -1: all of a row."""
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
    merge_lora: Annotated[bool, About(MERGE)] = True
    """Merging is what this command does: never false."""

    @field_validator("merge_lora")
    @classmethod
    def _always(cls, merge_lora: bool) -> bool:
        if not merge_lora:
            raise ValueError("merging is what this command does; export is the one that may leave it")
        return merge_lora


def merged_folder(params: MergeParams) -> Path:
    """Where the merged model is to be: `<adapter>-merged` beside the last adapter, unless `output_dir` says.

    Raises Conflict where there is something already, InvalidAdapter.
    """
    if params.output_dir:
        folder = Path(params.output_dir).expanduser()
    else:
        last = [*name_adapters(params.adapters).values()][-1]
        beside = Path(last).expanduser().resolve()
        parent = beside.parent if beside.is_dir() else Path("output")
        folder = parent / f"{beside.name}-merged"
    if folder.exists():
        raise Conflict(f"{folder} is there already: remove it, or give another output_dir", param="output_dir")
    return folder.absolute()
