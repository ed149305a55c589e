"""IPO (Azar et al. 2023, arXiv:2310.12036): from pairs of answers like DPO, with a loss that has a floor: the margin of
each token is to reach 1 / (2 beta), and not to grow for ever."""

from typing import ClassVar

from training.methods.dpo import Dpo
from training.params.rlhf import RlhfParams


class Ipo(Dpo):
    name = "ipo"
    choice: ClassVar = {"rlhf_type": name}
    reads = frozenset({"rlhf_type", "ref_model", "ref_model_revision", "beta"})
    openai_name = None

    def losses(self, params: RlhfParams) -> dict[str, float]:
        return {"ipo": 1.0}
