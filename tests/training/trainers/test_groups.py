"""Learning from groups of answers is TRL's: the same answers make the same losses, step by step, and weights."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.engines.pt.tiny import EOS
from tests.training.jobs import make_job
from training.folder import Step
from training.methods.grpo import FromGroups, Grpo
from training.methods.rloo import Rloo
from training.params.rlhf import RlhfParams
from training.pipelines.train import train_with
from training.report import Report
from training.rewards.types import Answered
from training.rollouts.types import Drawing, Rollout
from training.trainers.groups import GroupsTrainer

PROMPTS = ["red 1", "blue and red", "the value of two", "numbers"]
STEPS = 6
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "learning_rate": 0.2, "weight_decay": 0.1, "lr_scheduler_type": "constant", "logging_steps": 1,
    "gradient_checkpointing": False, "report_to": ["none"], "num_generations": 4, "max_completion_length": 9,
    "temperature": 0.8,
    "optim": "sgd",  # Adam steps as far for a gradient that is rounding alone
}  # fmt: skip


def scripted(prompt: Sequence[int], index: int) -> list[int]:
    """An answer that no policy has given: always the same one."""
    drawn = random.Random(f"{list(prompt)} {index}")
    answer = [drawn.randrange(2, 250) for _ in range(drawn.randint(1, 9))]
    return [*answer[:-1], EOS] if drawn.random() < 0.6 else answer


def worth(token_ids: Sequence[int]) -> float:
    return sum(token_ids) % 7 / 3


class Scripted:
    """What draws answers, without a policy."""

    version = 0

    def __init__(self, _: Any) -> None: ...

    def draw(
        self, prompts: Sequence[Sequence[int]], n: int, drawing: Drawing, *, seed: int, places: Sequence[int] = ()
    ) -> list[list[Rollout]]:
        return [[self._answer(prompt, index) for index in range(n)] for prompt in prompts]

    def _answer(self, prompt: Sequence[int], index: int) -> Rollout:
        ids = scripted(prompt, index)
        return Rollout(prompt_ids=prompt, token_ids=ids, log_probs=[0.0] * len(ids), ended=ids[-1] == EOS, version=0)

    def take_over(self) -> None: ...

    def close(self) -> None: ...


class Worth:
    name = "worth"

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        return [worth(answer.token_ids) for answer in answers]


def ours(method: FromGroups, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """Losses of all steps, and the weights in the end."""
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    given = {"model": str(model), "dataset": [str(data)], "torch_dtype": "float32", "split_dataset_ratio": 0}
    job = make_job(
        folder / "job", "rlhf", rlhf_type=method.name, train_type="full", reward_funcs=["format"],
        **given | SETTINGS | settings,
    )  # fmt: skip
    params = job.read_task().params
    assert isinstance(params, RlhfParams)
    assert method.refusals(params) == []
    monkeypatch.setitem(GroupsTrainer.__init__.__kwdefaults__, "rollouts", Scripted)
    monkeypatch.setitem(GroupsTrainer.__init__.__kwdefaults__, "judges", lambda *_, **__: [Worth()])
    result = train_with(method, params, Report(job))
    losses = [event.metrics["loss"] for event, _ in job.read_events() if isinstance(event, Step)]
    return losses, weights_of(job.path / str(result.artifact))


def theirs(trainer: Any, config: Any, model: Path, folder: Path, **settings: Any) -> Any:
    class Told(trainer):
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            n = self.num_generations
            ids = [scripted(prompt, at % n) for at, prompt in enumerate(prompt_ids)]
            return (ids, None) if trainer is GRPOTrainer else ids

    arguments = config(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, save_strategy="no", disable_dropout=True,
        model_init_kwargs={"dtype": "float32"}, **SETTINGS | settings,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    made = Told(
        str(model),
        lambda completion_ids, **_: [worth(ids) for ids in completion_ids],
        arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
    )
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return losses, {name: weight.detach() for name, weight in made.model.named_parameters()}


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return {name: weight.detach() for name, weight in model.named_parameters()}


WHOLE = {"per_device_train_batch_size": 16}
"""One forward pass learns from all answers."""
PARTS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
OF_GRPO: dict[str, dict[str, Any]] = {
    "plain": PARTS,
    "of several steps": PARTS | {"num_iterations": 3},
    "without a reference": PARTS | {"beta": 0.0},
    "dapo": PARTS | {"loss_type": "dapo", "epsilon_high": 0.28, "num_iterations": 2},
    "dr_grpo": PARTS | {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "bnpo": WHOLE | {"loss_type": "bnpo", "num_iterations": 2},
    "scaled by the batch": PARTS | {"scale_rewards": "batch"},
    "clipped on both sides": PARTS | {"delta": 1.05, "num_iterations": 3, "epsilon": 0.05},
    "without those that were cut": PARTS | {"overlong_filter": True},
    "without those that were cut, by tokens": PARTS | {"overlong_filter": True, "loss_type": "dapo"},
}
THEIRS = {"overlong_filter": "mask_truncated_completions"}


def in_their_words(settings: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | {THEIRS.get(name, name): value for name, value in settings.items()}


@pytest.mark.parametrize("way", OF_GRPO)
def test_grpo_is_trls(way: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OF_GRPO[way]
    told = in_their_words(settings, beta=0.04, loss_type="grpo", use_bias_correction_kl=False)
    same(ours(Grpo(), tiny, tmp_path, monkeypatch, **settings), theirs(GRPOTrainer, GRPOConfig, tiny, tmp_path, **told))


OF_RLOO: dict[str, dict[str, Any]] = {
    "plain": PARTS,
    "of several steps": PARTS | {"num_iterations": 3, "epsilon": 0.1},
    "without a reference": PARTS | {"beta": 0.0},
    "normalized": PARTS | {"normalize_advantages": True},
}


@pytest.mark.parametrize("way", OF_RLOO)
def test_rloo_is_trls(way: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OF_RLOO[way]
    told = in_their_words(settings, beta=0.05)
    same(ours(Rloo(), tiny, tmp_path, monkeypatch, **settings), theirs(RLOOTrainer, RLOOConfig, tiny, tmp_path, **told))


def same(found: Any, expected: Any) -> None:
    assert len(found[0]) == STEPS
    assert found[0] == pytest.approx(expected[0], abs=1e-4)
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-4, rtol=1e-3)
