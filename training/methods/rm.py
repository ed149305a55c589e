"""Reward models (Ouyang et al. 2022, arXiv:2203.02155): of two answers to the same prompt, the one that people chose is
to be worth more, by the model of Bradley and Terry (1952)."""

from typing import TYPE_CHECKING, Any, ClassVar

from training.methods.base import Beside, Method
from training.params.refusal import Refusal
from training.params.rlhf import RlhfParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training


class Rm(Method[RlhfParams]):
    name = "rm"
    task = "rlhf"
    params = RlhfParams
    choice: ClassVar = {"rlhf_type": name}
    task_type = "seq_cls"
    num_labels = 1
    rows = "pairs"
    reads = frozenset({"rlhf_type", "num_labels", "center_rewards_coefficient"})

    def beside(self, params: RlhfParams) -> Beside:
        return Beside(texts=2)

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        return ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        found = []
        if params.num_labels not in (None, self.num_labels):
            found.append(("num_labels", "a reward is one number: leave it out"))
        if params.router_aux_loss_coef:
            found.append(("router_aux_loss_coef", "models with a head compute no such loss: leave it out"))
        for name in sorted(params.model_fields_set):
            if name.endswith("_dropout") and getattr(params, name):
                found.append(
                    (name, "both answers of a pair are judged by the same model, without dropout: leave it out")
                )
        return found

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.losses.bradley_terry import BradleyTerry, Paired
        from training.trainers.head import HeadTrainer
        from training.trainers.reference import without_dropout

        without_dropout(job.tuned.model)
        collator = Paired(job.tokenizer.pad_token_id)
        return HeadTrainer(job, data_collator=collator, loss=BradleyTerry(job.params.center_rewards_coefficient))
