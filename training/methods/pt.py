"""Pre-training, or training on: every token of plain text is learned."""

from training.methods.sft import Sft
from training.params.sft import PtParams


class Pt(Sft):
    name = "pt"
    task = "pt"
    params = PtParams
    rows = "text"
    reads = Sft.reads - {"loss_scale"}
