"""DPO (Rafailov et al. 2023, arXiv:2305.18290): of two answers to the same prompt, one is to become likelier than the
other, compared with a reference model; with its own loss or another over the same numbers."""

from typing import ClassVar

from training.methods.pairs import REFERENCE, FromPairs
from training.params.rlhf import RlhfParams


class Dpo(FromPairs):
    name = "dpo"
    choice: ClassVar = {"rlhf_type": name}
    reads = REFERENCE | {"rlhf_type", "beta", "loss_type", "label_smoothing", "rpo_alpha"}
    openai_name: ClassVar[str | None] = "dpo"
    openai_defaults: ClassVar = {"rpo_alpha": 0}  # the reference's adds the preferred answers' own loss
    part_of_rate = 0.2
    compares = True
    losses = (
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
        "aot_unpaired", "apo_zero", "apo_down", "discopop",
    )  # fmt: skip
    smoothed = frozenset({"sigmoid", "exo_pair", "robust", "aot", "aot_unpaired"})

    def answer_weight(self, params: RlhfParams) -> float:
        return params.rpo_alpha
