"""DPO (Rafailov et al. 2023, arXiv:2305.18290): of two answers to the same prompt, one is to become likelier than the
other, compared with a reference model."""

from typing import ClassVar

from training.methods.base import Method
from training.params.rlhf import RlhfParams
from training.refusal import Refusal


class Dpo(Method[RlhfParams]):
    name = "dpo"
    task = "rlhf"
    params = RlhfParams
    choice: ClassVar = {"rlhf_type": name}
    rows = "pairs"
    reads = frozenset({"rlhf_type", "ref_model", "ref_model_revision", "beta", "label_smoothing", "rpo_alpha"})

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        answers = [f"{name}/{answer}" for name in ("rewards", "logps", "logits") for answer in ("chosen", "rejected")]
        return ("token_accuracy", "rewards/margins", "rewards/accuracies", *answers, "entropy")

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        found = []
        if params.lora_dropout and "lora_dropout" in params.model_fields_set:
            found.append(
                ("lora_dropout", f"{self.name} compares with a reference, and trains without dropout: leave it out")
            )
        if params.lora_bias != "none":
            found.append(("lora_bias", "the reference shares the model's biases, which must then stay as they are"))
        if params.init_weights.startswith("pissa"):
            found.append(("init_weights", "pissa changes the base model, which the reference shares: choose another"))
        if params.label_smoothing == 0.5:
            found.append(("label_smoothing", "at 0.5 no preference means anything: choose less"))
        if params.ref_model_revision is not None and params.ref_model is None:
            found.append(("ref_model_revision", "it belongs to ref_model, which is not given"))
        return found
