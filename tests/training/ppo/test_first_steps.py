"""PPO's first steps are those of TRL 1.12, the last version that has it (`record.py`), on the same answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler

from tests.training.ppo.given import (
    CASES,
    PROMPTS,
    SETTINGS,
    STEPS,
    Case,
    GivenRollouts,
    save_policy,
    save_reward_model,
)
from training.data import Datasets
from training.folder import JobFolder, Step
from training.params.rlhf import RlhfParams
from training.report import Report
from training.trainers.job.arguments import trainer_arguments
from training.trainers.job.job import Training, train
from training.trainers.model import load_base_config, load_for_training, load_tokenizer_for
from training.trainers.ppo import PpoTrainer
from training.trainers.weights.precision import precision_of
from training.tuners import tuner_of

FILE = Path(__file__).parents[2] / "data" / "ppo_of_trl.json"
TRL = json.loads(FILE.read_text())["steps"]
WITHOUT_PADDING = ("policy/approxkl_avg", "policy/entropy_avg", "val/ratio")
"""TRL takes these means over what pads the shorter answers too, and we over the answers."""


class InOrder(PpoTrainer):
    """Prompts in the order of the file, and updates in the order of the batch."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return SequentialSampler(dataset)

    def _order(self, answers: int, drawn: torch.Generator) -> torch.Tensor:
        return torch.arange(answers)


def job_of(folder: Path, **given: Any) -> Training[RlhfParams]:
    policy = save_policy(folder / "policy")
    params = RlhfParams.model_validate(
        SETTINGS
        | {
            "rlhf_type": "ppo", "model": str(policy), "torch_dtype": "float32", "train_type": "full",
            "reward_model": str(save_reward_model(policy, folder / "reward")), "max_steps": STEPS, "logging_steps": 1,
            "save_steps": 2, "report_to": "none",
        }
        | given
    )  # fmt: skip
    config = load_base_config(params)
    precision = precision_of(params, config)
    job_folder = JobFolder(folder / "job")
    job_folder.path.mkdir()
    rows = [{"prompt_ids": prompt, "completion_ids": [], "item": "{}"} for prompt in PROMPTS]
    tokenizer = load_tokenizer_for(params, learns="prompts")
    tuned = tuner_of(params).attach(load_for_training(params, config, precision.base), params)
    return Training(
        params=params, report=Report(job_folder), tuned=tuned, precision=precision, tokenizer=tokenizer,
        data=Datasets(train=Dataset.from_list(rows), evaluation=None),
        arguments=trainer_arguments(params, job_folder.path, precision=precision, evaluates=False),
    )  # fmt: skip


def first_steps(case: Case, folder: Path) -> list[dict[str, float]]:
    job = job_of(folder, **case.settings)
    trainer = InOrder(job, rollouts=lambda _: GivenRollouts(ends=case.ends))
    assert train(trainer).status == "succeeded"
    return [event.metrics for event, _ in job.report.folder.read_events() if isinstance(event, Step)]


@pytest.mark.parametrize("name", CASES)
def test_the_first_steps_are_trls(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ours = first_steps(case, tmp_path)

    assert len(ours) == STEPS
    for step, (mine, theirs) in enumerate(zip(ours, TRL[name], strict=True), 1):
        for metric, value in theirs.items():
            if metric not in WITHOUT_PADDING or not case.ends:
                assert mine[metric] == pytest.approx(value, abs=1e-4), (step, metric)
