"""Writing a model in another form: merged, quantised, or to the hub."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from engines.params.common import BaseParams
from engines.params.merge import MergeLoraParams


class ExportParams(MergeLoraParams, BaseParams):
    """Writing a model in another form: merged, quantised, or to the hub."""

    starred: ClassVar = frozenset({"output_dir", "quant_method", "push_to_hub"})

    output_dir: str | None = None
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
    push_to_hub: bool = False
    """Upload the result to the hub."""
    hub_model_id: str | None = None
    """Name of the repository that it is uploaded to."""
    hub_private_repo: bool = False
    """Make that repository private, where it has to be created."""
    commit_message: str = "update files"
    """Message of the commit that the upload makes."""


class MergeParams(ExportParams):
    """Adding a trained adapter to its base model: export with `merge_lora`."""

    merge_lora: bool = True
    """Merging is what this command does: never false."""

    @field_validator("merge_lora")
    @classmethod
    def _always(cls, merge_lora: bool) -> bool:
        if not merge_lora:
            raise ValueError("merging is what this command does; export is the one that may leave it")
        return merge_lora
