"""Both matrices start as random ones of orthogonal directions, whose product is zero."""

from collections.abc import Iterator

from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.tuners.starts.base import Start


class Orthogonal(Start):
    def __init__(self) -> None:
        super().__init__("orthogonal", begins_as_base=True)

    def refusals(self, params: SftParams) -> Iterator[Refusal]:
        yield from super().refusals(params)
        if params.lora_rank % 2:
            yield "lora_rank", "init_weights orthogonal takes an even one"
