"""ORPO (Hong et al. 2024, arXiv:2403.07691): the chosen answers are learned as in supervised training, prompts too, and
their odds are to be larger than those of the rejected ones. `beta` is the paper's lambda."""

from typing import ClassVar

from training.methods.pairs import FromPairs
from training.params.rlhf import RlhfParams


class Orpo(FromPairs):
    name = "orpo"
    choice: ClassVar = {"rlhf_type": name}
    reads = frozenset({"rlhf_type", "beta"})
    openai_name = name
    losses = ("odds_ratio",)

    def answer_weight(self, params: RlhfParams) -> float:
        return 1.0
