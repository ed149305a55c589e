"""Learning from several answers to each prompt, compared with one another: transformers' trainer, and answers that our
engine draws while it trains.

A *generation* is the answers that are drawn, judged and learned from together: `num_generations` of each of its
prompts. It is divided into batches, one for each forward pass, and gone through `num_iterations` times. What it draws
depends on its number, the seed and the weights alone, so that a training that was killed and resumed draws what it
would have drawn.

On a `rollout_device` of their own, the answers to the first prompts are judged and learned from while those to the
others are drawn. The batches are the same, in the same order, and no step is made before all answers are there.
"""

import json
import math
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from engines.errors import InvalidRequest
from training.losses.advantages import Advantages, alike, weighted_sum
from training.losses.log_probs import TokenLogProbs, token_log_probs
from training.losses.policy import Clipped
from training.params.rlhf import RlhfParams
from training.rewards.chosen import rewards_of
from training.rewards.graded import asks_base
from training.rewards.types import Reward
from training.rollouts.ahead import AheadRollouts
from training.rollouts.types import Drawing, JudgingRollouts, Rollout
from training.trainers.answers.answer_form import answer_form
from training.trainers.answers.base_judge import BaseJudge
from training.trainers.answers.drawing_times import DrawingTimes
from training.trainers.answers.generation import FILE, Batch, Generation
from training.trainers.answers.judged import Judged, together, told
from training.trainers.answers.judges import Judges
from training.trainers.answers.rollouts import rollouts_of
from training.trainers.batches.averages import Averages, over_processes
from training.trainers.batches.collate import as_they_are
from training.trainers.job.job import JobTrainer, Training
from training.trainers.reference import reference_of, without_dropout

COMPLETIONS = "completions.jsonl"
Row = Mapping[str, Any]


class GroupsTrainer(JobTrainer, Trainer):  # type: ignore[misc]  # transformers is untyped here
    def __init__(
        self,
        job: Training[RlhfParams],
        *,
        beta: float,
        judges: Callable[..., list[Reward]] = rewards_of,
        rollouts: Callable[[Training[Any]], JudgingRollouts] = rollouts_of,
    ) -> None:
        """`beta`: how strongly the policy is held to the reference. `judges`, `rollouts`: make what judges answers, and
        what draws them.

        Raises InvalidRequest, UnsupportedModel.
        """
        without_dropout(job.tuned.model)
        super().__init__(job, args=TrainingArguments(**job.arguments), data_collator=as_they_are)
        params = job.params
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True  # by the loss itself
        self.beta = beta
        ask = BaseJudge(job.tokenizer, self._drawn_by)
        self._judges = Judges(judges(params, job.tokenizer, device=str(self.args.device), ask=ask), job.tokenizer)
        self._weights = torch.tensor(params.reward_weights or [1.0] * len(self._judges.names))
        self._parts = params.steps_per_generation or params.gradient_accumulation_steps
        self._passes_of_generation = self._parts * params.num_iterations
        self._several_steps = self._passes_of_generation > params.gradient_accumulation_steps
        self._prompts = params.per_device_train_batch_size * self._parts // params.num_generations
        self._drawing = Drawing(
            max_new_tokens=params.max_completion_length,
            temperature=params.temperature,
            top_k=params.top_k or 0,
            top_p=1.0 if params.top_p is None else params.top_p,
            repetition_penalty=params.repetition_penalty or 1.0,
            structured=answer_form(params, job.tokenizer, job.data.train),
        )
        self._reference = reference_of(job, self.args.device) if beta else None
        self._make_rollouts = rollouts
        self._rollouts: JudgingRollouts | None = None
        self._policy = -1
        """Step whose weights the rollouts have."""
        self._generation: Generation | None = None
        self._coming: Iterator[tuple[Row, list[Rollout]]] = iter(())
        """Prompts of the generation whose answers are not in it yet, with these."""
        self._judged: list[Judged] = []
        """What has been judged of a generation that is not whole."""
        self._ahead = params.rollout_device is not None and not self.needs_all and not asks_base(params)
        self._passes: int | None = None
        """Forward passes of training so far."""
        self._resumed: Path | None = None
        self._seen = Averages()
        self._times = DrawingTimes()

    # ---- what the method says

    @property
    def needs_old(self) -> bool:
        """Whether it asks for log-probabilities before anything is learned even where one step learns from each."""
        return False

    @property
    def needs_all(self) -> bool:
        """Whether nothing can be learned from answers before all of their generation are there."""
        return False

    @abstractmethod
    def advantages(self, rewards: Tensor, divergences: Tensor | None) -> Advantages:
        """`rewards`: (answers,) of whole groups, in all processes; where `needs_all`, those of a generation.
        `divergences`: (answers,) how far each has moved from the reference, in nats, where `needs_old` and there is a
        reference."""

    @abstractmethod
    def loss(self, said: TokenLogProbs, batch: Batch, tokens: float) -> tuple[Tensor, Clipped]:
        """Scalar: the loss of a batch, to be added to those of the others of a step. `tokens`: those that are learned
        from in a step, in each process on average; known where `needs_all`."""

    # ---- the order of things

    def train(self, *given: Any, **named: Any) -> Any:
        try:
            return super().train(*given, **named)
        except BaseException:
            if self._rollouts is not None:
                self._rollouts.close()  # which may still draw
            raise

    def get_train_dataloader(self) -> Any:
        """As many batches as there are forward passes in an epoch; what is in them is drawn."""
        loader = DataLoader(range(self._generations * self._passes_of_generation), collate_fn=_places)
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=False
        )

    @property
    def _generations(self) -> int:
        """Generations of an epoch."""
        rows: int = len(self.job.data.train)
        return -(-rows // (self._prompts * int(self.args.world_size)))

    def _rows(self, number: int) -> list[Row]:
        """The prompts of a generation, in this process. The last ones of an epoch are filled up with its first."""
        epoch, place = divmod(number, self._generations)
        rows = self.job.data.train
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.args.seed + epoch))
        first = (place * self.args.world_size + self.args.process_index) * self._prompts
        return [rows[int(order[at % len(rows)])] for at in range(first, first + self._prompts)]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        return super().training_step(model, {"batch": self._next()}, num_items_in_batch)

    def _next(self) -> Batch:
        """The batch of the next forward pass."""
        if self._passes is None:
            self._passes = self.state.global_step * self.args.gradient_accumulation_steps
        number, place = divmod(self._passes, self._passes_of_generation)
        if place == 0:
            self._begin(number)
        elif self._generation is None:
            self._generation = self._begun()
        self._passes += 1
        ends_a_step = place + 1 >= self.args.gradient_accumulation_steps
        return self._batch(self._with_parts(self._parts if ends_a_step else place + 1), place % self._parts)

    def _begun(self) -> Generation:
        """The generation in the checkpoint that training goes on from."""
        if self._resumed is None or not (self._resumed / FILE).is_file():
            message = f"it has no {FILE}, and its step is in the middle of a generation: choose another checkpoint"
            raise InvalidRequest(message, param="resume_from_checkpoint")
        return Generation.load(self._resumed)

    def _batch(self, generation: Generation, part: int) -> Batch:
        size = self.args.per_device_train_batch_size
        return generation.batch(part, size, self.processing_class.pad_token_id, self.args.device)

    # ---- a generation

    def _begin(self, number: int) -> None:
        rows = self._rows(number)
        self._generation, self._judged = Generation(), []
        groups = self._draw(rows, f"generation {number}", self.job.params.num_generations, ahead=self._ahead)
        self._coming = zip(rows, groups, strict=False)

    def _with_parts(self, parts: int) -> Generation:
        """The generation with so many of its batches at least."""
        assert self._generation is not None, "it has begun"
        while len(self._generation.answers) < parts * self.args.per_device_train_batch_size:
            self._add(self._generation)
        return self._generation

    def _add(self, generation: Generation) -> None:
        """Await the answers to the next prompts, judge them, and note what is learned by."""
        n, size = self.job.params.num_generations, self.args.per_device_train_batch_size
        with self._times.waiting():
            drawn = list(islice(self._coming, math.lcm(n, size) // n if self._ahead else self._prompts))
        answers = [answer for _, group in drawn for answer in group]
        rewards = self._judges([row for row, group in drawn for _ in group], answers)
        first = len(generation.answers)
        generation.add(answers, without_cut=self.job.params.overlong_filter)
        tokens = {"": float(generation.learned_tokens(first))}
        generation.tokens += over_processes(tokens, self.accelerator)[""]
        divergences = self._look_back(generation, first // size)
        whole = self.accelerator.gather(rewards.to(self.args.device)).cpu()
        moved = None if divergences is None else self.accelerator.gather(divergences).cpu()
        found = self.advantages(weighted_sum(whole, self._weights), moved)
        mine = slice(self.args.process_index * len(answers), (self.args.process_index + 1) * len(answers))
        generation.advantages[first:] = found.advantages[mine].float()
        self._seen.add(self._judges.parts())
        self._write(answers, rewards, generation.advantages[first:])
        self._judged.append(Judged(answers, whole, found.alike))
        if len(generation.answers) == n * self._prompts:
            self._tell(together(self._judged))

    def _draw(self, rows: Sequence[Row], what: str, n: int, *, ahead: bool = False) -> Iterable[list[Rollout]]:
        """`n` answers to each of the policy as it is. The same weights and `what` give the same answers. `ahead`: the
        first come while the others are drawn."""
        with self._times.waiting():
            if self._rollouts is None:
                self._rollouts = self._make_rollouts(self.job)
            elif self._policy != self.state.global_step:
                self._rollouts.take_over()
            self._policy = self.state.global_step
            seed = random.Random(f"{self.args.seed} {what}").getrandbits(63)
            first = self.args.process_index * len(rows)
            asked = [row["prompt_ids"] for row in rows], n, self._drawing
            drawer = self._rollouts
            draw = drawer.groups if ahead and isinstance(drawer, AheadRollouts) else drawer.draw
            return draw(*asked, seed=seed, places=range(first, first + len(rows)))

    def _drawn_by(self) -> JudgingRollouts:
        assert self._rollouts is not None, "answers are drawn before they are judged"
        return self._rollouts

    def _look_back(self, generation: Generation, first: int) -> Tensor | None:
        """Note what the policy and the reference say of the answers before anything is learned of them, from the batch
        `first` on.

        Returns how far the policy has moved from the reference by each answer, where both are noted.
        """
        if not (self._several_steps or self.needs_old or self._reference):
            return None
        moved = []
        for part in range(first, len(generation.answers) // self.args.per_device_train_batch_size):
            batch = self._batch(generation, part)
            with torch.no_grad(), self.compute_loss_context_manager():
                if self._several_steps or self.needs_old:
                    generation.old.append(self._say(self.model, batch).log_probs)
                if self._reference is not None:
                    asked = (batch.inputs, batch.positions, batch.token_ids)
                    said = self._reference.log_probs(*asked, temperature=self._drawing.temperature)
                    generation.reference.append(said)
            if generation.old and generation.reference:
                away = torch.zeros(batch.answers, device=self.args.device)
                moved.append(away.index_add(0, batch.rows, generation.old[-1] - generation.reference[-1]))
        return torch.cat(moved) if moved else None

    def _say(self, model: Any, batch: Batch, *, entropy: bool = False) -> TokenLogProbs:
        return token_log_probs(
            model,
            batch.inputs,
            batch.positions,
            batch.token_ids,
            temperature=self._drawing.temperature,
            entropy=entropy,
        )

    # ---- the loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        batch: Batch = inputs["batch"]
        assert self._generation is not None, "the batch is of it"
        said = self._say(model, batch, entropy=True)
        tokens = self._generation.tokens * self.args.gradient_accumulation_steps / self._parts
        loss, clipped = self.loss(said, batch, tokens)
        assert said.entropy is not None, "asked for"
        count = torch.tensor(clipped.low.numel())
        self._seen.add(
            {
                "entropy": (said.entropy.sum(), torch.tensor(said.entropy.numel())),
                "clip_ratio/low_mean": (clipped.low.sum(), count),
                "clip_ratio/high_mean": (clipped.high.sum(), count),
                "clip_ratio/region_mean": ((clipped.low | clipped.high).sum(), count),
            }
        )
        if (penalty := self.job.tuned.penalty()) is not None:
            loss = loss + penalty / self.current_gradient_accumulation_steps  # of each step once
        return (loss, None) if return_outputs else loss

    # ---- what is told

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            drawn_ahead = self._rollouts.seconds if isinstance(self._rollouts, AheadRollouts) else None
            times = self._times.taken(drawn_ahead)
            logs |= over_processes(self._seen.taken(), self.accelerator) | times
        super().log(logs, start_time)

    def _tell(self, judged: Judged) -> None:
        self._seen.add(told(judged, self._weights, self._judges.names))
        self._seen.add({"policy_version": (torch.tensor(self._policy), torch.tensor(1))})
        self._count_tokens(judged.answers)
        self._times.add_tokens(sum(len(answer.token_ids) for answer in judged.answers))

    def _count_tokens(self, answers: Sequence[Rollout]) -> None:
        tokens = sum(len(answer.prompt_ids) + len(answer.token_ids) for answer in answers)
        counted = torch.tensor(tokens, device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(counted, reduction="sum"))

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """The trainer would look for them in `inputs`, which are places."""

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _write(self, answers: Sequence[Rollout], rewards: Tensor, advantages: Tensor) -> None:
        if not self.job.params.log_completions or not self.args.should_save:
            return
        with (self.job.report.folder.path / COMPLETIONS).open("a") as file:
            for answer, judged, advantage in zip(answers, rewards.tolist(), advantages.tolist(), strict=True):
                prompt, text = (self.processing_class.decode(ids) for ids in (answer.prompt_ids, answer.token_ids))
                known = {
                    name: each for name, each in zip(self._judges.names, judged, strict=True) if not math.isnan(each)
                }
                line = {"step": self.state.global_step, "prompt": prompt, "completion": text, "rewards": known}
                file.write(json.dumps(line | {"advantage": advantage}) + "\n")

    # ---- evaluation

    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """Answers to each prompt, judged; the loss is the reward times -1."""
        n = self.job.params.num_generations_eval or self.job.params.num_generations
        seen, count = Averages(), 0
        for number, batch in enumerate(dataloader):
            rows = batch["rows"]
            groups = list(self._draw(rows, f"evaluation {number}", n))
            answers = [each for group in groups for each in group]
            rewards = self._judges([row for row, group in zip(rows, groups, strict=True) for _ in group], answers)
            same = alike(weighted_sum(rewards, self._weights), n)
            self._times.add_tokens(sum(len(answer.token_ids) for answer in answers))
            seen.add(told(Judged(answers, rewards, same), self._weights, self._judges.names))
            seen.add(self._judges.parts())
            count += len(rows)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        means = over_processes(seen.taken(), self.accelerator)
        metrics = {"loss": -means["reward"], **means}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=named, num_samples=count)

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        ends = self.state.global_step * self.args.gradient_accumulation_steps % self._passes_of_generation == 0
        if self._generation is not None and not ends and not self.args.save_only_model:
            self._generation.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._resumed = Path(resume_from_checkpoint)


def _places(places: Sequence[int]) -> dict[str, Any]:
    return {"places": list(places)}
