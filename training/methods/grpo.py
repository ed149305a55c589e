"""GRPO (Shao et al. 2024, arXiv:2402.03300): the model answers each prompt several times, and learns by how much better
an answer is than the others; with DAPO's and Dr. GRPO's changes as options."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from training.data.samples import Learns
from training.methods.base import Beside, Method
from training.methods.judged import JUDGES, of_judges
from training.params.grpo import MOST_GENERATIONS
from training.params.refusal import Refusal, not_supported
from training.params.rlhf import RlhfParams
from training.params.rollouts import RolloutParams

if TYPE_CHECKING:
    from training.losses.policy import LossType
    from training.trainers.job.job import Training

GENERATIONS: int = RlhfParams.model_fields["num_generations"].default
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
"""The first unless given."""


class FromGroups(Method[RlhfParams]):
    """What GRPO and RLOO have in common."""

    task = "rlhf"
    params = RlhfParams
    rows: Learns = "prompts"
    reads = frozenset(
        {
            "rlhf_type", "ref_model", "ref_model_revision", "beta", "temperature", "num_generations",
            "num_generations_eval", "response_format",
            "max_completion_length", "top_k", "top_p", "repetition_penalty", "num_iterations", "steps_per_generation",
            "epsilon", "epsilon_high", "overlong_filter", "log_completions", *JUDGES, *RolloutParams.model_fields,
        }
    )  # fmt: skip
    default_beta: ClassVar[float]
    """Unless given."""
    part_of_rate = 0.1

    def beta(self, params: RlhfParams) -> float:
        return self.default_beta if params.beta is None else params.beta

    def draws(self, params: RlhfParams) -> bool:
        return True

    def beside(self, params: RlhfParams) -> Beside:
        passes = params.steps_per_generation or params.gradient_accumulation_steps
        return Beside(
            entropy=True,
            reference=bool(self.beta(params)),
            models=("reward_model",) if params.reward_model else (),
            drawn=params.per_device_train_batch_size * passes,
            drawn_tokens=params.max_completion_length,
        )

    def metrics(self, params: RlhfParams) -> tuple[str, ...]:
        lengths = tuple(f"completions/{name}" for name in ("mean_length", "min_length", "max_length", "clipped_ratio"))
        return ("reward", "reward_std", "frac_reward_zero_std", *lengths)

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        return [*of_judges(params), *self._of_sizes(params), *self._of_others(params)]

    def _of_sizes(self, params: RlhfParams) -> Iterator[Refusal]:
        accumulated = params.gradient_accumulation_steps
        passes = params.steps_per_generation or accumulated
        if passes % accumulated:
            yield "steps_per_generation", f"it must be a multiple of gradient_accumulation_steps, {accumulated}"
        answers = params.per_device_train_batch_size * passes
        if params.rollout_max_num_seqs < (most := max(params.num_generations, params.num_generations_eval or 0)):
            yield "rollout_max_num_seqs", f"the {most} answers to a prompt are drawn together"
        if answers % params.num_generations:
            reason = (
                f"{answers} answers are learned from at a time (per_device_train_batch_size times steps_per_generation,"
                f" or gradient_accumulation_steps), which is no multiple of {params.num_generations}"
            )
            yield "num_generations", reason

    def _of_others(self, params: RlhfParams) -> Iterator[Refusal]:
        if params.streaming:
            yield "streaming", f"{self.name} goes through its prompts in an order of its own: leave it out"
        if params.dataloader_num_workers:
            yield "dataloader_num_workers", "answers are drawn, and no process can make batches ahead: leave it out"
        if params.neftune_noise_alpha:
            yield "neftune_noise_alpha", "noise would change how likely the answers are: leave it out"
        if params.router_aux_loss_coef:
            yield "router_aux_loss_coef", f"{self.name} adds no such loss: leave it out"
        for name in sorted(params.model_fields_set):
            if name.endswith("_dropout") and getattr(params, name):
                yield name, "an answer is as likely when it is learned as when it was drawn: leave it out"
        if params.ref_model_revision is not None and params.ref_model is None:
            yield "ref_model_revision", "it belongs to ref_model, which is not given"
        if params.ref_model is not None and not self.beta(params):
            yield "ref_model", "with beta 0 nothing is compared with it: leave it out"


class Grpo(FromGroups):
    name = "grpo"
    choice: ClassVar = {"rlhf_type": name}
    openai_name: ClassVar[str | None] = "reinforcement"
    openai_defaults: ClassVar = {"temperature": 1.0}  # answers as the model gives them
    hyperparameters: ClassVar = {
        "compute_multiplier": 1.0,
        "eval_interval": None,
        "eval_samples": None,
        "reasoning_effort": None,
    }
    reads = FromGroups.reads | {"loss_type", "delta", "scale_rewards"}
    default_beta = 0.04

    def of_openai(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """How much is explored is how many answers there are to each prompt."""
        many = round(GENERATIONS * hyperparameters["compute_multiplier"])
        every = hyperparameters["eval_interval"]
        evaluated = {} if every is None else {"eval_strategy": "steps", "eval_steps": every}
        answers = hyperparameters["eval_samples"]
        evaluated |= {} if answers is None else {"num_generations_eval": answers}
        return {"num_generations": min(max(many, 2), MOST_GENERATIONS), **evaluated}

    def answers_to_a_row(self, params: Mapping[str, Any]) -> int:
        return int(params["num_generations"])

    def refusals(self, params: RlhfParams) -> list[Refusal]:
        found = super().refusals(params)
        if params.loss_type is not None and params.loss_type not in LOSS_TYPES:
            found.append(("loss_type", not_supported(params.loss_type, LOSS_TYPES)))
        return found

    def trainer(self, job: "Training[RlhfParams]") -> Any:
        from training.trainers.grpo import GrpoTrainer

        loss_type = job.params.loss_type or LOSS_TYPES[0]
        return GrpoTrainer(job, beta=self.beta(job.params), loss_type=cast("LossType", loss_type))
