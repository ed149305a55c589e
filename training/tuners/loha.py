"""LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): the change of a weight is the product, number by number, of two
changes of low rank, and so of a higher rank than they are."""

from typing import ClassVar

from training.tuners.configured import Configured


class Loha(Configured):
    name = "loha"
    quantized_bases = frozenset({"torchao"})
    conv1d = False
    config_class = "LoHaConfig"
    fields: ClassVar = {"lora_rank": "r", "lora_alpha": "alpha"}
