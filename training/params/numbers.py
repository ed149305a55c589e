"""In which type a training computes, and what is added to its loss. Additions to the reference's parameters: fields of
transformers' TrainingArguments and TRL's configurations, by their names."""

from typing import Annotated

from pydantic import Field

from engines.params.about import TRAINING, About
from engines.params.base import Params


class NumbersParams(Params):
    """In which type a training computes, and what is added to its loss."""

    bf16: Annotated[bool | None, About(TRAINING)] = None
    """Compute in bfloat16 with weights that learn in float32 (autocast). True for a model in bfloat16 unless given.
    `false` has such a model's weights learn in bfloat16 too: half the memory, but an update that is less than about
    1/256 of its weight is lost, and at the usual rates most are."""
    fp16: Annotated[bool | None, About(TRAINING)] = None
    """The same in float16, with a loss that is scaled so that small gradients are not lost; on a GPU. True for a model
    in float16 unless given."""
    router_aux_loss_coef: Annotated[float | None, About(TRAINING)] = Field(None, ge=0)
    """Weight of the loss that has a mixture of experts use all of them evenly; 0: none. The one in the model's
    config.json unless given."""
