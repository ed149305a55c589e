"""BOFT (Liu et al. 2023, arXiv:2311.06243): each weight is turned by an orthogonal matrix, made of blocks."""

from typing import Any, ClassVar

from training.params.refusal import Refusal, given
from training.params.sft import SftParams
from training.tuners.configured import Configured


class Boft(Configured):
    name = "boft"
    quantized_bases = frozenset({"bnb", "hqq"})
    conv1d = False
    config_class = "BOFTConfig"
    fields: ClassVar = {
        "boft_block_size": "boft_block_size",
        "boft_block_num": "boft_block_num",
        "boft_dropout": "boft_dropout",
    }
    size = "boft_block_size"

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        if params.boft_block_num is None and not params.boft_block_size:
            found.append(("boft_block_size", "0 leaves it to boft_block_num, which is not given"))
        if params.boft_block_num is not None and params.boft_block_size and given(params, ["boft_block_size"]):
            found.append(("boft_block_num", "boft_block_size says as much: give one of the two"))
        return found

    def settings(self, params: SftParams) -> dict[str, Any]:
        """PEFT takes one of the two, and 0 for the other."""
        number = params.boft_block_num
        sizes = {"boft_block_size": 0 if number else params.boft_block_size, "boft_block_num": number or 0}
        return super().settings(params) | sizes

    def shape(self, model: Any) -> dict[str, Any]:
        shape = super().shape(model)
        return shape | {"boft_block_num": shape["boft_block_num"] or None}
