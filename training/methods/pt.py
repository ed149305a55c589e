"""Pre-training, or training on: every token of plain text is learned."""

from typing import ClassVar

from training.methods.sft import Sft
from training.params.sft import PtParams


class Pt(Sft):
    name = "pt"
    task = "pt"
    params = PtParams
    choice: ClassVar = {}
    rows = "text"
    openai_name = None
    reads = Sft.reads - {"loss_scale", "predict_with_generate", "max_new_tokens", "temperature", "metric"}
    """Every token is learned: there is no prompt to answer, and no part to weigh."""
