"""DPO (Rafailov et al. 2023, arXiv:2305.18290): of two answers to the same prompt, one is to become likelier than the
other, compared with a reference model."""

from typing import TYPE_CHECKING, Any, ClassVar

from training.methods.base import Method
from training.params.refusal import Refusal
from training.params.rlhf import RlhfParams

if TYPE_CHECKING:
    from training.trainers.job import Training

BETA = 0.1
"""Unless given: the reference's."""


class Dpo(Method[RlhfParams]):
    name = "dpo"
    task = "rlhf"
    params = RlhfParams
    choice: ClassVar = {"rlhf_type": name}
    rows = "pairs"
    reads = frozenset({"rlhf_type", "ref_model", "ref_model_revision", "beta", "label_smoothing", "rpo_alpha"})
    openai_name: ClassVar[str | None] = "dpo"
    openai_defaults: ClassVar = {"rpo_alpha": 0}  # the reference's adds the preferred answers' own loss
    hyperparameters: ClassVar = {"beta": BETA}
    part_of_rate = 0.2

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        answers = [f"{name}/{answer}" for name in ("rewards", "logps", "logits") for answer in ("chosen", "rejected")]
        return ("token_accuracy", "rewards/margins", "rewards/accuracies", *answers, "entropy")

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        found = []
        for name in sorted(params.model_fields_set):
            if name.endswith("_dropout") and getattr(params, name):
                reason = f"{self.name} compares with a reference, and trains without dropout: leave it out"
                found.append((name, reason))
        if params.lora_bias != "none":
            found.append(("lora_bias", "the reference shares the model's biases, which must then stay as they are"))
        if params.init_weights.startswith("pissa"):
            found.append(("init_weights", "pissa changes the base model, which the reference shares: choose another"))
        if params.label_smoothing == 0.5:
            found.append(("label_smoothing", "at 0.5 no preference means anything: choose less"))
        if params.ref_model_revision is not None and params.ref_model is None:
            found.append(("ref_model_revision", "it belongs to ref_model, which is not given"))
        return found

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.trainers.pairs import PairsTrainer

        losses = self.losses(job.params)
        return PairsTrainer(
            job,
            beta=BETA if job.params.beta is None else job.params.beta,
            loss_type=list(losses),
            loss_weights=list(losses.values()),
            label_smoothing=job.params.label_smoothing,
        )

    def losses(self, params: RlhfParams) -> dict[str, float]:
        """TRL's names of the losses to add up, with their weights.

        With label smoothing e, DPO's loss is (1 - e) L(x) + e L(-x), where L(x) = -log sigmoid(x) (Mitchell 2023, "A
        note on DPO with noisy preferences"). TRL's `sigmoid` is L(x) whatever e is; its `robust` is (that with -e) /
        (1 - 2e). As L(-x) = L(x) + x, what is wanted is (2 - 2e) sigmoid - (1 - 2e) robust.
        """
        smoothing = params.label_smoothing
        losses = {"sigmoid": 2 - 2 * smoothing, "robust": 2 * smoothing - 1} if smoothing else {"sigmoid": 1.0}
        return losses | ({"sft": params.rpo_alpha} if params.rpo_alpha else {})
