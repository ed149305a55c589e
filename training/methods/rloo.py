"""RLOO (Ahmadian et al. 2024, arXiv:2402.14740): REINFORCE for whole answers, each compared with the mean reward of the
other answers to its prompt."""

from typing import TYPE_CHECKING, Any, ClassVar

from training.methods.grpo import FromGroups
from training.params.rlhf import RlhfParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training


class Rloo(FromGroups):
    name = "rloo"
    choice: ClassVar = {"rlhf_type": name}
    reads = FromGroups.reads | {"normalize_advantages"}
    default_beta = 0.05

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.trainers.grpo import RlooTrainer

        return RlooTrainer(job, beta=self.beta(job.params))
