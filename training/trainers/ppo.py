"""PPO (Schulman et al. 2017, arXiv:1707.06347) on answers of the model in training (Ouyang et al. 2022,
arXiv:2203.02155): transformers' trainer, whose step is a batch of prompts.

A step draws an answer to each prompt, judges it (the score of reward model, functions and grader, how far the model has
moved from the reference, the value of each token), and then learns from the batch `num_ppo_epochs` times, in
`num_mini_batches` updates each. What it judges with stays as it was when the answers were drawn. The last update of a
step is the trainer's own; a checkpoint is written between steps, so that no answers need to be kept in it.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from training.losses.advantages import weighted_sum
from training.losses.log_probs import token_log_probs
from training.losses.ppo import (
    advantages_of,
    policy_losses,
    token_rewards,
    value_losses,
    whitened,
)
from training.params.rlhf import RlhfParams
from training.rewards.chosen import functions_of, graders_of
from training.rewards.reward_model import RewardModel
from training.rollouts.types import Drawing, JudgingRollouts, Rollout
from training.trainers.answers.answer_form import answer_form
from training.trainers.answers.base_judge import BaseJudge
from training.trainers.answers.drawing_times import DrawingTimes
from training.trainers.answers.judges import Judges, mean
from training.trainers.answers.rollouts import rollouts_of
from training.trainers.batches.averages import Averages, over_processes
from training.trainers.batches.collate import as_they_are
from training.trainers.job.finite import check_weights
from training.trainers.job.job import JobTrainer, Training
from training.trainers.reference import reference_of, without_dropout
from training.trainers.value_model import value_model_of

MODEL = RewardModel.name
SHOWN = 3
"""Answers of a step that are told, where samples are due."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts with their answers, as the models take them."""

    inputs: dict[str, Tensor]
    """`input_ids`, `attention_mask`, `position_ids`: (texts, tokens of the longest), padded on the right."""
    choices: Tensor
    """(texts, tokens) bool: the positions from which the tokens of an answer are predicted."""
    states: Tensor
    """(texts, tokens) bool: the positions at which values are asked for: those, and where an answer is shorter than
    the longest of its batch, its last token."""
    lasts: Tensor
    """(texts, tokens) bool: the last token of each."""
    answer_ids: Tensor
    """(choices,)"""


@dataclass(frozen=True, slots=True)
class Experience:
    """Answers, and what was said of them before anything was learned from them: (answers, tokens of the longest)."""

    rollouts: Sequence[Rollout]
    answered: Tensor
    """bool: the tokens of an answer."""
    valued: Tensor
    """bool: those, and one more of answers shorter than the longest: see `losses.ppo`."""
    log_probs: Tensor
    kl: Tensor
    values: Tensor
    rewards: Tensor
    """(answers, judges): NaN where one does not apply."""
    scores: Tensor
    """(answers,)"""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is learned from an experience."""

    advantages: Tensor
    returns: Tensor


class PpoTrainer(JobTrainer, Trainer):  # type: ignore[misc]  # transformers is untyped here
    def __init__(
        self, job: Training[RlhfParams], *, rollouts: Callable[[Training[Any]], JudgingRollouts] = rollouts_of
    ) -> None:
        """`rollouts`: makes what draws answers. Raises InvalidRequest, InvalidAdapter, UnsupportedModel."""
        params = job.params
        self.batch = params.per_device_train_batch_size * params.gradient_accumulation_steps
        whole = {"per_device_train_batch_size": self.batch, "gradient_accumulation_steps": 1}
        without_dropout(job.tuned.model)
        self._value_model = value_model_of(job)
        super().__init__(job, args=TrainingArguments(**job.arguments | whole), data_collator=as_they_are)
        judges = functions_of(params, params.response_length)
        self._place_of_model = len(judges) if params.reward_model is not None else None
        """Of the reward model among those who judge; it is no judge of texts here, and reads tokens."""
        judges += graders_of(params, job.tokenizer, BaseJudge(job.tokenizer, lambda: self._rollouts))
        self._judges = Judges(judges, job.tokenizer)
        self._weights = torch.tensor(params.reward_weights or [1.0] * len(self._names))
        self._reference = reference_of(job, self.args.device)
        self._rollouts = rollouts(job)
        self._value_model.to(self.args.device)
        self._value: Any = self._value_model.value
        if self.args.world_size > 1:
            self._value = self.accelerator.prepare_model(self._value)
        self._drawing = Drawing(
            max_new_tokens=params.response_length,
            temperature=params.temperature,
            structured=answer_form(params, job.tokenizer, job.data.train),
        )
        self._seen = Averages()
        self._times = DrawingTimes()
        self._began = perf_counter()
        self._episodes = 0

    # ---- a step

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        rollouts = self._draw(inputs["rows"], f"step {self.state.global_step}")
        experience = self._judge(model, inputs["rows"], rollouts)
        self._show(experience)
        loss = self._learn(model, experience, self._lesson(experience))
        self._episodes += len(rollouts)
        self._count_tokens(rollouts)
        self._seen.add(self._told(experience) | self._judges.parts())
        return loss

    def _draw(self, rows: Sequence[Mapping[str, Any]], what: str) -> list[Rollout]:
        """An answer to each prompt, of the policy as it is. The same weights and `what` give the same answers."""
        seed = random.Random(f"{self.args.seed} {what}").getrandbits(63)
        first = self.args.process_index * len(rows)
        prompts, places = [row["prompt_ids"] for row in rows], range(first, first + len(rows))
        with self._times.waiting():
            self._rollouts.take_over()
            drawn = [answers[0] for answers in self._rollouts.draw(prompts, 1, self._drawing, seed=seed, places=places)]
        self._times.add_tokens(sum(len(rollout.token_ids) for rollout in drawn))
        return drawn

    @property
    def _names(self) -> list[str]:
        """The judges, in the order of their weights."""
        at = self._place_of_model
        return self._judges.names if at is None else [*self._judges.names[:at], MODEL, *self._judges.names[at:]]

    def _judge(self, model: Any, rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> Experience:
        """`rows`: what the rollouts answer."""
        rewards = self._judges(rows, rollouts).to(self.args.device)
        lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts], device=self.args.device)
        longest = self.accelerator.gather(lengths.max()[None]).max()
        at = torch.arange(int(longest), device=self.args.device)
        answered, valued = at < lengths[:, None], at <= lengths[:, None]
        pieces: list[tuple[Tensor, Tensor, Tensor]] = []
        scores: list[Tensor] = []
        learns = model.training, self._value.training
        model.eval()
        self._value.eval()
        for piece in torch.arange(len(rollouts)).split(self.job.params.local_rollout_forward_batch_size):
            texts = self._texts([rollouts[i] for i in piece], valued[piece])
            with torch.no_grad(), self.accelerator.autocast():
                said = self._log_probs(model, texts).log_probs
                before = self._reference.log_probs(
                    texts.inputs, texts.choices, texts.answer_ids, temperature=self._drawing.temperature
                )
                values = self._value(texts.inputs, texts.states)
                if self._place_of_model is not None:
                    scores.append(self._value_model.scores(texts.inputs, texts.lasts))
            pieces.append((said, before, values))
        model.train(learns[0])
        self._value.train(learns[1])
        said, before, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        if (at := self._place_of_model) is not None:
            rewards = torch.cat([rewards[:, :at], torch.cat(scores)[:, None], rewards[:, at:]], dim=1)
        return Experience(
            rollouts=rollouts,
            answered=answered,
            valued=valued,
            log_probs=_placed(said, answered),
            kl=_placed(said - before, answered),
            values=_placed(values, valued),
            rewards=rewards,
            scores=self._scores(rewards, rollouts),
        )

    def _scores(self, rewards: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        """(answers,): 0 where no judge says anything, less the penalty for those that do not end."""
        scores = weighted_sum(rewards, self._weights.to(rewards.device)).nan_to_num(nan=0.0)
        penalty = self.job.params.missing_eos_penalty or 0.0
        return scores - penalty * torch.tensor([not rollout.ended for rollout in rollouts], device=scores.device)

    def _lesson(self, experience: Experience) -> Lesson:
        params = self.job.params
        rewards = token_rewards(experience.scores, experience.kl, experience.answered, params.kl_coef)
        if params.whiten_rewards:
            rewards = whitened(rewards, experience.valued, keep_mean=True, summed=self._summed)
        advantages = advantages_of(rewards, experience.values, gamma=params.gamma, lam=params.lam)
        return Lesson(whitened(advantages, experience.answered, summed=self._summed), advantages + experience.values)

    def _summed(self, own: Tensor) -> Tensor:
        """Over all processes."""
        total: Tensor = self.accelerator.reduce(own, reduction="sum")
        return total

    def _learn(self, model: Any, experience: Experience, lesson: Lesson) -> Tensor:
        """All updates of a step but the last, whose gradients are left to the trainer. The mean of their losses."""
        params = self.job.params
        losses = []
        self.optimizer.zero_grad()
        model.train()
        self._value.train()
        for number, rows in enumerate(self._mini_batches(len(experience.rollouts))):
            tokens = self._tokens(experience, rows)
            if number:
                self._clipped(model, self.args.max_grad_norm or float("inf"))
                self.optimizer.step()
                self.optimizer.zero_grad()
            parts = [
                self._backward(model, experience, lesson, part, tokens, len(part) / len(rows))
                for part in rows.split(params.per_device_train_batch_size)
            ]
            losses.append(torch.stack(parts).sum())
        return torch.stack(losses).mean()

    def _mini_batches(self, answers: int) -> Iterator[Tensor]:
        """The answers of each update, in an order that is another in each epoch."""
        params = self.job.params
        drawn = torch.Generator().manual_seed(params.seed + self.state.global_step)
        for _ in range(params.num_ppo_epochs):
            order = self._order(answers, drawn)
            yield from (part for part in order.tensor_split(params.num_mini_batches) if len(part))

    def _order(self, answers: int, drawn: torch.Generator) -> Tensor:
        return torch.randperm(answers, generator=drawn)

    def _tokens(self, experience: Experience, rows: Tensor) -> Tensor:
        """(2,): the choices and the states of an update, which are all processes', for each of them: as its gradients
        are averaged, all learn what one would learn from all."""
        own = torch.stack([experience.answered[rows].sum(), experience.valued[rows].sum()])
        return self._summed(own) / self.args.world_size

    def _backward(
        self, model: Any, experience: Experience, lesson: Lesson, part: Tensor, tokens: Tensor, share: float
    ) -> Tensor:
        """The loss of `part` of the answers of an update, which are this `share` of them, as a part of the mean over
        all `tokens` of the update."""
        params = self.job.params
        answered, valued = experience.answered[part], experience.valued[part]
        texts = self._texts([experience.rollouts[i] for i in part], valued)
        with self.accelerator.autocast():
            said = self._log_probs(model, texts, entropy=True)
            values = _placed(self._value(texts.inputs, texts.states), valued)
        log_ratio = _placed(said.log_probs, answered) - experience.log_probs[part]
        policy = policy_losses(log_ratio, lesson.advantages[part], params.cliprange)
        value = value_losses(values, experience.values[part], lesson.returns[part], params.cliprange_value)
        choices, states = tokens
        policy_loss = (policy.losses * answered).sum() / choices
        value_loss = (value.losses * valued).sum() / states
        loss = policy_loss + params.vf_coef * value_loss
        self.accelerator.backward(loss)
        assert said.entropy is not None, "asked for"
        sums = {  # as parts of means over all tokens of the update
            "loss/policy_avg": policy_loss,
            "loss/value_avg": value_loss,
            "policy/approxkl_avg": 0.5 * log_ratio.square().sum() / choices,
            "policy/clipfrac_avg": (policy.clipped & answered).sum() / choices,
            "policy/entropy_avg": said.entropy.sum() / choices,
            "val/clipfrac_avg": (value.clipped & valued).sum() / states,
            "val/ratio": (log_ratio.exp() * answered).sum() / choices,
        }
        self._seen.add({name: (total, torch.tensor(share)) for name, total in sums.items()})
        return loss.detach()

    def _log_probs(self, model: Any, texts: Texts, *, entropy: bool = False) -> Any:
        temperature = self._drawing.temperature
        return token_log_probs(
            model, texts.inputs, texts.choices, texts.answer_ids, temperature=temperature, entropy=entropy
        )

    def _texts(self, rollouts: Sequence[Rollout], valued: Tensor) -> Texts:
        """`valued`: (rollouts, tokens of the longest answer) bool."""
        return _texts(rollouts, valued.sum(-1).tolist(), self.processing_class.pad_token_id, self.args.device)

    # ---- what is told

    def _told(self, experience: Experience) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums over the answers, by name, each with the number of answers."""
        answers = torch.tensor(len(experience.rollouts))
        kl = experience.kl.sum()
        sums = {
            "objective/kl": kl,
            "objective/entropy": -experience.log_probs.sum(),
            "objective/non_score_reward": -self.job.params.kl_coef * kl,
            "objective/rlhf_reward": experience.scores.sum() - self.job.params.kl_coef * kl,
            "objective/scores": experience.scores.sum(),
            "val/num_eos_tokens": torch.tensor(sum(rollout.ended for rollout in experience.rollouts)),
            "completions/mean_length": experience.answered.sum(),
        }
        judged = {
            f"rewards/{name}/mean": mean(each) for name, each in zip(self._names, experience.rewards.T, strict=True)
        }
        return {name: (total, answers) for name, total in sums.items()} | judged

    def _show(self, experience: Experience) -> None:
        """Tell of some answers, `num_sample_generations` times in all of the training."""
        times = self.job.params.num_sample_generations
        if not times or self.state.global_step % max(1, self.state.max_steps // times):
            return
        for rollout, score in list(zip(experience.rollouts, experience.scores.tolist(), strict=True))[:SHOWN]:
            prompt, answer = (self.processing_class.decode(ids) for ids in (rollout.prompt_ids, rollout.token_ids))
            said = f"Sample before step {self.state.global_step + 1}, score {score:.3f}: {prompt!r} -> {answer!r}"
            self.job.report.message(said)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= over_processes(self._seen.taken(), self.accelerator) | self._times.taken()
            logs["eps"] = self._episodes * self.args.world_size / (perf_counter() - self._began)
        super().log(logs, start_time)

    def _count_tokens(self, rollouts: Sequence[Rollout]) -> None:
        tokens = sum(len(rollout.prompt_ids) + len(rollout.token_ids) for rollout in rollouts)
        counted = torch.tensor(tokens, device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(counted, reduction="sum"))

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """The trainer would look for them in `inputs`, which are rows."""

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    # ---- evaluation

    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """An answer to each prompt, judged; the loss is what PPO makes least: the reward, held to the reference, times
        -1."""
        batches = [batch["rows"] for batch in dataloader]
        drawn = iter(self._draw([row for rows in batches for row in rows], "evaluation"))
        seen = Averages()
        for rows in batches:
            judged = self._judge(self.model, rows, [next(drawn) for _ in rows])
            seen.add(self._told(judged) | self._judges.parts())
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        means = over_processes(seen.taken(), self.accelerator)
        metrics = {"loss": -means["objective/rlhf_reward"], **means}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=named, num_samples=sum(map(len, batches)))

    # ---- the optimizer, and checkpoints

    def create_optimizer(self, *given: Any) -> Any:
        optimizer = super().create_optimizer(*given)
        learning, decayed = self._value_model.learning(), self._decayed()
        for names, decay in ((decayed, self.args.weight_decay), ({name for name, _ in learning} - decayed, 0.0)):
            weights = [weight for name, weight in learning if name in names]
            if weights:
                optimizer.add_param_group({"params": weights, "weight_decay": decay})
        return optimizer

    def _decayed(self) -> set[str]:
        return set(self.get_decay_parameter_names(self._value_model.value))

    def _clipped(self, model: Any, most: float) -> Tensor | None:
        norm: Tensor | None = self.accelerator.clip_grad_norm_([*model.parameters(), *self._value.parameters()], most)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        check_weights(self._value, self.args, self.state.global_step)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.save_only_model:
            self._value_model.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._value_model.load(Path(resume_from_checkpoint))


def _texts(rollouts: Sequence[Rollout], states: Sequence[int], pad: int, device: torch.device) -> Texts:
    """`states`: at how many positions of each the value is asked for, from the last token of the prompt on."""
    texts = [[*rollout.prompt_ids, *rollout.token_ids] for rollout in rollouts]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [pad] * (longest - len(text)) for text in texts], device=device)
    at = torch.arange(longest, device=device)
    starts, ends = (
        torch.tensor(numbers, device=device)[:, None]
        for numbers in ([len(rollout.prompt_ids) - 1 for rollout in rollouts], [len(text) - 1 for text in texts])
    )
    mask = (at <= ends).long()
    return Texts(
        inputs={"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)},
        choices=(starts <= at) & (at < ends),
        states=(starts <= at) & (at < starts + torch.tensor(states, device=device)[:, None]),
        lasts=at == ends,
        answer_ids=torch.tensor([token for rollout in rollouts for token in rollout.token_ids], device=device),
    )


def _placed(said: Tensor, where: Tensor) -> Tensor:
    """`said` (positions,) at the places of `where` (answers, tokens) bool, and 0 elsewhere."""
    return torch.zeros(where.shape, device=said.device).masked_scatter(where, said)
