"""SimPO (Meng et al. 2024, arXiv:2405.14734): the log-probability of a token, averaged over an answer, is its reward;
that of the chosen answer is to be larger by a margin. `cpo_alpha` adds the chosen answers' own loss."""

from typing import ClassVar

from training.methods.pairs import FromPairs
from training.params.rlhf import RlhfParams


class Simpo(FromPairs):
    name = "simpo"
    choice: ClassVar = {"rlhf_type": name}
    reads = frozenset({"rlhf_type", "beta", "label_smoothing", "simpo_gamma", "cpo_alpha"})
    openai_name = name
    hyperparameters: ClassVar = {"beta": 2.0}
    part_of_rate = 0.2
    losses = ("simpo",)
    smoothed = frozenset({"simpo"})

    def answer_weight(self, params: RlhfParams) -> float:
        return params.cpo_alpha
