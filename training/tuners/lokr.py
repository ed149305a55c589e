"""LoKr (Yeh et al. 2023, arXiv:2309.14859): the change of a weight is the Kronecker product of two small matrices."""

from typing import ClassVar

from training.tuners.configured import Configured


class Lokr(Configured):
    name = "lokr"
    quantized_bases = frozenset({"torchao"})
    conv1d = False
    config_class = "LoKrConfig"
    fields: ClassVar = {"lora_rank": "r", "lora_alpha": "alpha"}
