"""How the processes of a training divide its work. An addition to the reference's parameters."""

from typing import Annotated, Literal

from pydantic import Field

from engines.params.about import THE_SERVER, TRAINING, About
from engines.params.base import Params


class ParallelParams(Params):
    """How the processes of a training divide its work."""

    fsdp: Annotated[
        Literal["full_shard", "shard_grad_op", "full_shard offload", "shard_grad_op offload"] | None,
        About(TRAINING, not_in_fine_tuning=THE_SERVER),
    ] = None
    """Divide weights, gradients and optimizer among the processes (FSDP2): `full_shard`, or `shard_grad_op`, which
    gathers weights once a step instead of twice and holds them in between. With `offload` they wait in the memory of
    the CPU."""
    tensor_model_parallel_size: Annotated[int, About(TRAINING, one_run=True, not_in_fine_tuning=THE_SERVER)] = Field(
        1, ge=1
    )
    """Over how many devices each layer is divided, in sft and pt, with weights, gradients and optimizer: it divides the
    heads of attention and the inner size of the layers. The more processes there are besides, the larger the batch."""
