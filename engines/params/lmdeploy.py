"""Settings of the LMDeploy engine."""

from typing import Annotated, ClassVar

from pydantic import Field

from engines.params.about import FOR_IMAGES, About
from engines.params.base import Params


class LmdeployParams(Params):
    """Settings of the LMDeploy engine."""

    starred: ClassVar = frozenset({"tp"})

    tp: Annotated[int, About(engines=("lmdeploy",))] = Field(1, ge=1)
    """Over how many GPUs each layer is divided."""
    session_len: Annotated[int | None, About(engines=("lmdeploy",), same_as="max_model_len")] = Field(None, ge=1)
    """The most tokens of a prompt and its output together. The model's limit unless given."""
    cache_max_entry_count: Annotated[float, About(engines=("lmdeploy",))] = Field(0.8, gt=0)
    """The part of the memory that is free once the weights are loaded to use as KV cache."""
    quant_policy: Annotated[int, About(engines=("lmdeploy",))] = Field(0, ge=0)
    """Bits of the numbers in the KV cache: 4, 8, or 0 for the model's own type."""
    vision_batch_size: Annotated[int, About(not_in_deploy=FOR_IMAGES)] = Field(1, ge=1)
    """How many images the vision tower encodes at once.

    Images are not supported in this version, so neither is this.
    """
