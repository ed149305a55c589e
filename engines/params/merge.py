"""Adding a trained adapter to the weights of its base model."""

from typing import Annotated, ClassVar

from pydantic import Field

from engines.params.about import EXPORT, INFER, MERGE, About
from engines.params.base import Params

MERGE_FIRST = "merge first, by tuneserve merge, and serve the result"


class MergeLoraParams(Params):
    """Adding a trained adapter to the weights of its base model."""

    starred: ClassVar = frozenset({"merge_lora"})

    merge_lora: Annotated[bool, About(EXPORT + INFER, not_in_deploy=MERGE_FIRST)] = False
    """Add the adapter to the base model's weights first, and go on with the merged model. For adapters that can be
    merged: LoRA and its kin, LLaMA Pro, LongLoRA."""
    safe_serialization: Annotated[bool, About(MERGE, choices=(True,))] = True
    """Write weights as safetensors, which hold no code; false writes PyTorch's pickle files."""
    max_shard_size: Annotated[str, About(MERGE, text=True)] = Field("5GB", pattern=r"(?i)^\d+(\.\d+)?\s*([KMGT]i?)?B$")
    """The largest weight file to write; more weights go into further files."""
