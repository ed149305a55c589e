"""GKD, generalised knowledge distillation (Agarwal et al. 2023, arXiv:2306.13649): at each token of an answer, the
model is to find every token as likely as a larger model does. Some of the answers are its own."""

from typing import TYPE_CHECKING, Any, ClassVar

from training.methods.base import Beside, Method
from training.params.gkd import GkdParams
from training.params.refusal import Refusal, given
from training.params.rlhf import RlhfParams
from training.params.rollouts import RolloutParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training

BETA = 0.5
"""Unless given: TRL's."""
DRAWING = ("temperature", "response_length", *RolloutParams.model_fields)
"""Parameters of answers that are drawn."""


class Gkd(Method[RlhfParams]):
    name = "gkd"
    task = "rlhf"
    params = RlhfParams
    choice: ClassVar = {"rlhf_type": name}
    needs: ClassVar = {"teacher_model": "name the model to learn from"}
    rows = "prompts"
    reads = frozenset(GkdParams.model_fields | RolloutParams.model_fields) | {
        "rlhf_type",
        "beta",
        "temperature",
        "response_length",
    }

    def draws(self, params: RlhfParams) -> bool:
        return params.lmbda > 0

    def beside(self, params: RlhfParams) -> Beside:
        answers = params.per_device_train_batch_size * params.gradient_accumulation_steps if params.lmbda else 0
        return Beside(models=("teacher_model",), drawn=answers, drawn_tokens=params.response_length)

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        return ("agreement",)

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        found = []
        if params.beta is not None and params.beta > 1:
            found.append(("beta", "in gkd it is a place between two divergences, from 0 to 1"))
        if params.router_aux_loss_coef:
            found.append(("router_aux_loss_coef", "gkd adds no such loss: leave it out"))
        if params.seq_kd and params.lmbda == 1:
            found.append(("seq_kd", "with lmbda 1 all answers are the model's own, and none the teacher's"))
        if not params.seq_kd and params.lmbda == 0:
            reason = "with lmbda 0 and without seq_kd no answer is drawn: leave it out"
            found += [(name, reason) for name in given(params, DRAWING)]
        return found

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.trainers.gkd import GkdTrainer

        return GkdTrainer(job, beta=BETA if job.params.beta is None else job.params.beta)
