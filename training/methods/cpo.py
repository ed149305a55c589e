"""CPO (Xu et al. 2024, arXiv:2401.08417): DPO's losses without a reference model, and the chosen answers' own loss,
which keeps the model near them."""

from typing import ClassVar

from training.methods.pairs import FromPairs
from training.params.rlhf import RlhfParams


class Cpo(FromPairs):
    name = "cpo"
    choice: ClassVar = {"rlhf_type": name}
    reads = frozenset({"rlhf_type", "beta", "loss_type", "label_smoothing", "cpo_alpha"})
    openai_name = name
    part_of_rate = 0.2
    losses = ("sigmoid", "hinge", "ipo")
    smoothed = frozenset({"sigmoid"})

    def answer_weight(self, params: RlhfParams) -> float:
        return params.cpo_alpha
