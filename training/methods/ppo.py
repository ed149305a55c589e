"""PPO (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155): the model answers prompts, the
answers are judged, and what was judged well becomes likelier, not far from what the model said before."""

from typing import TYPE_CHECKING, Any, ClassVar

from training.methods.base import Beside, Method
from training.methods.judged import JUDGES, of_judges
from training.methods.pairs import of_reference
from training.params.ppo import PpoParams
from training.params.refusal import Refusal
from training.params.rlhf import RlhfParams
from training.params.rollouts import RolloutParams
from training.tuners.starts import start_of

if TYPE_CHECKING:
    from training.trainers.job.job import Training

WHITENED_AT_LEAST = 8
"""Answers of an update from which their rewards can be whitened, as in TRL."""


class Ppo(Method[RlhfParams]):
    name = "ppo"
    task = "rlhf"
    params = RlhfParams
    choice: ClassVar = {"rlhf_type": name}
    rows = "prompts"
    reads = (
        JUDGES
        | frozenset(PpoParams.model_fields | RolloutParams.model_fields)
        | {"rlhf_type", "ref_model", "ref_model_type", "ref_model_revision", "response_format"}
    )
    part_of_rate = 0.1

    def draws(self, params: RlhfParams) -> bool:
        return True

    def beside(self, params: RlhfParams) -> Beside:
        return Beside(
            entropy=True,
            reference=True,
            models=("reward_model",) if params.reward_model else (),
            value_model=True,
            drawn=params.per_device_train_batch_size * params.gradient_accumulation_steps,
            drawn_tokens=params.response_length,
        )

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        named = ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores")
        return (*(f"objective/{name}" for name in named), "val/num_eos_tokens", "completions/mean_length")

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        found = [*of_judges(params), *of_reference(params, self.name)]
        if params.neftune_noise_alpha:
            found.append(("neftune_noise_alpha", "noise would change how likely the answers are: leave it out"))
        if params.router_aux_loss_coef:
            found.append(("router_aux_loss_coef", "ppo adds no such loss: leave it out"))
        if params.train_type == "adalora":
            found.append(("train_type", "ppo makes several updates a step, and adalora counts steps: choose lora"))
        start = start_of(params.init_weights)
        if start is not None and start.takes_out:
            reason = f"{start.name} changes weights of the value model that its checkpoints do not hold: choose another"
            found.append(("init_weights", reason))
        elif start is not None and start.uses_data:
            found.append(("init_weights", f"{start.name} would take data of the value model's own: choose another"))
        if params.lora_bias != "none" and params.reward_model is not None:
            found.append(("lora_bias", "reward and value model share their biases, which must then stay as they are"))
        return found + self._batch(params)

    def _batch(self, params: RlhfParams) -> list[Refusal]:
        """What a batch of that size cannot be divided into."""
        batch = params.per_device_train_batch_size * params.gradient_accumulation_steps
        parts = params.num_mini_batches
        if batch % parts:
            return [("num_mini_batches", f"a batch of {batch} answers has no {parts} equal parts")]
        if params.whiten_rewards and batch // parts < WHITENED_AT_LEAST:
            said = f"the variance of {batch // parts} answers says little: at least {WHITENED_AT_LEAST} an update"
            return [("whiten_rewards", said)]
        return []

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.trainers.ppo import PpoTrainer

        return PpoTrainer(job)
