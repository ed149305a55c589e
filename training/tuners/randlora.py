"""RandLoRA (Albert et al. 2025, arXiv:2502.00987): a change of full rank, the sum of random matrices that all layers
share, each scaled by vectors that are trained."""

from typing import ClassVar

from training.tuners.configured import Configured


class RandLora(Configured):
    name = "randlora"
    quantized_bases = frozenset({"bnb", "torchao"})
    config_class = "RandLoraConfig"
    fields: ClassVar = {"lora_rank": "r", "lora_alpha": "randlora_alpha", "lora_dropout": "randlora_dropout"}
    size = "lora_rank"
