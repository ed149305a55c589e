"""GKD (Agarwal et al. 2023, arXiv:2306.13649): transformers' trainer with a teacher's loss, on answers of the data, of
the teacher, or of the model in training."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from engines.checkpoint.loading import load_tokenizer
from engines.errors import InvalidRequest
from training.data.encode import IGNORED
from training.losses.distillation import Teacher
from training.losses.log_probs import asked_of, judge_at
from training.params.refusal import said_of
from training.params.rlhf import RlhfParams
from training.rollouts.types import Drawing, Rollouts
from training.trainers.answers.drawing_times import DrawingTimes
from training.trainers.answers.rollouts import rollouts_of
from training.trainers.batches.averages import Averages, over_processes
from training.trainers.batches.collate import Padded, as_they_are
from training.trainers.job.job import JobTrainer, Training
from training.trainers.model import load_base_config, load_for_training, model_of
from training.tuners.base import Tuned

NO_ANSWER = "some rows have no answer: with lmbda 1 the model gives all of them, with seq_kd the teacher"

Rows = Sequence[Mapping[str, Any]]
Batch = dict[str, Tensor]


class GkdTrainer(JobTrainer, Trainer):  # type: ignore[misc]  # transformers is untyped here
    def __init__(
        self,
        job: Training[RlhfParams],
        *,
        beta: float,
        rollouts: Callable[[Training[Any]], Rollouts] = rollouts_of,
    ) -> None:
        """`rollouts`: makes what draws answers. Raises InvalidRequest, also where the data has no answers and nothing
        else gives them, and UnsupportedModel."""
        params = job.params
        _check_answered(job)
        taught = load_teacher(job)
        super().__init__(job, args=TrainingArguments(**job.arguments), data_collator=as_they_are)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of all accumulated batches
        self._beta = beta
        self._teacher = Teacher(taught.tuned.model.to(self.args.device))
        self._own = rollouts(job) if params.lmbda else None
        self._teachers = rollouts(taught) if params.seq_kd else None
        self._drawing = Drawing(max_new_tokens=params.response_length, temperature=params.temperature)
        self._padded = Padded(job.tokenizer.pad_token_id)
        self._seen = {"train": Averages(), "eval": Averages()}
        self._times = DrawingTimes()

    # ---- answers

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Batch], Tensor]:
        """The batches of the next update with their answers, and the number of tokens to learn of them.

        A batch is answered by the model itself with the probability `lmbda` (the paper's algorithm 1).
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        what = f"step {self.state.global_step}"
        by_itself = [
            random.Random(f"{self._seed(what)} {i}").random() < self.job.params.lmbda for i in range(len(batches))
        ]
        answers = [[row["completion_ids"] for row in batch["rows"]] for batch in batches]
        for drawer, whose in ((self._own, True), (self._teachers, False)):
            numbers = [i for i, own in enumerate(by_itself) if own is whose]
            if drawer is not None and numbers:
                rows = [row for i in numbers for row in batches[i]["rows"]]
                places = [place for i in numbers for place in self._places(i, len(batches[i]["rows"]))]
                drawn = iter(self._draw(drawer, rows, what, places))
                for i in numbers:
                    answers[i] = [next(drawn) for _ in batches[i]["rows"]]
        made = [self._batch(batch["rows"], ids) for batch, ids in zip(batches, answers, strict=True)]
        tokens = {"": float(sum(len(answer) for batch in answers for answer in batch))}
        count = over_processes(tokens, self.accelerator)[""]  # of each on average, as their gradients are averaged
        share = torch.tensor(float(sum(by_itself))), torch.tensor(len(batches))
        self._seen["train"].add({"on_policy": share})
        return made, torch.tensor(count, device=device)

    def _places(self, number: int, rows: int) -> range:
        """Where the rows of a batch stand among those of all processes."""
        args = self.args
        first = number * args.per_device_train_batch_size * args.world_size + args.process_index * rows
        return range(first, first + rows)

    def _draw(self, drawer: Rollouts, rows: Rows, what: str, places: Sequence[int]) -> list[Sequence[int]]:
        prompts, seed = [row["prompt_ids"] for row in rows], self._seed(what)
        with self._times.waiting():
            if drawer is self._own:
                drawer.take_over()
            drawn = [one[0].token_ids for one in drawer.draw(prompts, 1, self._drawing, seed=seed, places=places)]
        self._times.add_tokens(sum(map(len, drawn)))
        return drawn

    def _seed(self, what: str) -> int:
        return random.Random(f"{self.args.seed} {what}").getrandbits(63)

    def _batch(self, rows: Rows, answers: Sequence[Sequence[int]]) -> Batch:
        if not all(answers):  # of a stream
            raise InvalidRequest(NO_ANSWER, param="dataset")
        samples = [
            {"input_ids": [*row["prompt_ids"], *ids], "labels": [IGNORED] * len(row["prompt_ids"]) + [*ids]}
            for row, ids in zip(rows, answers, strict=True)
        ]
        return self._padded(samples)

    # ---- the loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        given = {name: value for name, value in inputs.items() if name != "labels"}
        positions, _ = asked_of(inputs["labels"])
        known = self._teacher.knows(given, positions)
        divergences, agrees, _, _ = judge_at(
            model, given, positions, known, partial(self._teacher.judge, beta=self._beta)
        )
        tokens = torch.tensor(len(known))
        self._seen["train" if model.training else "eval"].add({"agreement": (agrees.sum(), tokens)})
        loss = divergences.sum() / (tokens if num_items_in_batch is None else num_items_in_batch)
        if model.training and (penalty := self.job.tuned.penalty()) is not None:
            loss = loss + penalty / self.current_gradient_accumulation_steps  # of each step once
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        rows: Rows = inputs["rows"]
        answers = [row["completion_ids"] for row in rows]
        missing = [i for i, answer in enumerate(answers) if not answer]
        if missing:
            assert self._own is not None, "checked before training"
            places = self._places(0, len(rows))
            asked = [rows[i] for i in missing], "evaluation", [places[i] for i in missing]
            for i, drawn in zip(missing, self._draw(self._own, *asked), strict=True):
                answers[i] = drawn
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(self._batch(rows, answers)))
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for mode, prefix, mark in (("train", "", "loss"), ("eval", "eval_", "eval_loss")):
            if mark in logs:
                logs |= over_processes(self._seen[mode].taken(prefix), self.accelerator)
        if "loss" in logs and (self._own or self._teachers):
            logs |= self._times.taken()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


def load_teacher(job: Training[RlhfParams]) -> Training[RlhfParams]:
    """The same job with the teacher (a `PreTrainedModel`, on the CPU) in place of the model in training.

    Raises UnsupportedModel, and InvalidRequest where its tokens are not the same.
    """
    params = job.params
    changes = {"model": params.teacher_model, "model_revision": params.teacher_model_revision, "adapters": ()}
    named = params.model_copy(update=changes)
    with said_of("teacher_model"):
        config = load_base_config(named)
        theirs = load_tokenizer(model_of(named), revision=named.model_revision, token=named.hub_token)
        model = load_for_training(named, config, job.precision.base).requires_grad_(False).eval()
    _check(job, config, theirs)
    return replace(job, params=named, tuned=Tuned(model))


def _check(job: Training[RlhfParams], config: Any, tokenizer: Any) -> None:
    """`config`, `tokenizer`: the teacher's."""
    text_config = config.get_text_config()
    if job.params.teacher_model_type not in (None, config.model_type, text_config.model_type):
        raise InvalidRequest(f"the teacher is of type {config.model_type}", param="teacher_model_type")
    mine = job.tokenizer.get_vocab()
    if tokenizer.get_vocab() != mine or text_config.vocab_size < len(mine):
        message = "its tokens are not those of the model in training: what it says of them cannot be compared"
        raise InvalidRequest(message, param="teacher_model")


def _check_answered(job: Training[RlhfParams]) -> None:
    """Whether whatever has to be answered by the data is. Raises InvalidRequest."""
    params = job.params
    for param, rows, needed in (
        ("dataset", None if params.streaming else job.data.train, params.lmbda < 1 and not params.seq_kd),
        ("val_dataset", job.data.evaluation, params.lmbda == 0),
    ):
        if needed and rows is not None and not all(map(len, rows["completion_ids"])):
            raise InvalidRequest(NO_ANSWER, param=param)
