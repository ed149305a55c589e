"""FourierFT (Gao et al. 2024, arXiv:2405.03003): the change of a weight is learned as some of its frequencies."""

from typing import ClassVar

from training.params.sft import SftParams
from training.tuners.configured import Configured


class FourierFt(Configured):
    name = "fourierft"
    quantized_bases = frozenset({"bnb", "torchao"})
    config_class = "FourierFTConfig"
    fields: ClassVar = {"fourier_n_frequency": "n_frequency", "fourier_scaling": "scaling"}
    size = "fourier_n_frequency"

    def begins_as_base(self, params: SftParams) -> bool:
        return False  # the frequencies are random at the start, as in the paper
