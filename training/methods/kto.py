"""KTO (Ethayarajh et al. 2024, arXiv:2402.01306): from single answers that were good or bad, compared with a reference
model. The good ones are to gain more on it than any answer does, the bad ones less."""

from typing import TYPE_CHECKING, Any, ClassVar

from training.data.samples import Learns
from training.methods.base import Beside, Method
from training.methods.pairs import BETA, REFERENCE, of_reference
from training.params.refusal import Refusal, not_supported
from training.params.rlhf import RlhfParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training


class Kto(Method[RlhfParams]):
    name = "kto"
    task = "rlhf"
    params = RlhfParams
    choice: ClassVar = {"rlhf_type": name}
    rows: Learns = "labels"
    reads = REFERENCE - {"precompute_ref_log_probs"} | {
        "rlhf_type", "beta", "loss_type", "desirable_weight", "undesirable_weight"
    }  # fmt: skip
    """What the reference says of mismatched answers is known once a batch is."""
    openai_name: ClassVar[str | None] = name
    least_in_a_pass = 2
    openai_defaults: ClassVar = {"per_device_train_batch_size": least_in_a_pass}
    hyperparameters: ClassVar = {"beta": BETA, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    part_of_rate = 0.2
    losses = ("kto", "apo_zero_unpaired")
    """Choices of `loss_type`, the first unless given."""

    def loss_type(self, params: RlhfParams) -> str:
        return self.losses[0] if params.loss_type is None else params.loss_type

    def beside(self, params: RlhfParams) -> Beside:
        return Beside(entropy=True, reference=True)

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        answers = [f"{name}/{answer}" for name in ("rewards", "logps") for answer in ("chosen", "rejected")]
        divergence = ("kl",) if self.loss_type(params) == "kto" else ()
        return ("token_accuracy", "rewards/margins", *answers, "entropy", *divergence)

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        found = [*of_reference(params, self.name)]
        if self.loss_type(params) not in self.losses:
            found.append(("loss_type", not_supported(self.loss_type(params), self.losses)))
        if self.loss_type(params) == "kto" and params.per_device_train_batch_size < self.least_in_a_pass:
            reason = "kto compares the answers of a batch with one another: 2 at least, or loss_type apo_zero_unpaired"
            found.append(("per_device_train_batch_size", reason))
        if params.desirable_weight == params.undesirable_weight == 0:
            found.append(("desirable_weight", "beside an undesirable_weight of 0, nothing is learned: choose more"))
        return found

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.trainers.kto import KtoLoss, KtoTrainer

        params = job.params
        loss = KtoLoss(
            beta=BETA if params.beta is None else params.beta,
            desirable=params.desirable_weight,
            undesirable=params.undesirable_weight,
            diverges=self.loss_type(params) == "kto",
        )
        return KtoTrainer(job, loss)
