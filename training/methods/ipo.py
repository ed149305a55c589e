"""IPO (Azar et al. 2023, arXiv:2310.12036): from pairs of answers like DPO, with a loss that has a floor: the margin of
each token is to reach 1 / (2 beta), and not to grow for ever."""

from typing import ClassVar

from training.methods.pairs import REFERENCE, FromPairs


class Ipo(FromPairs):
    name = "ipo"
    choice: ClassVar = {"rlhf_type": name}
    reads = REFERENCE | {"rlhf_type", "beta"}
    part_of_rate = 0.2
    compares = True
    losses = ("ipo",)
