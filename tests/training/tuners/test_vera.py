"""VeRA: what is particular to it. What it has in common with others is in test_kinds.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.training.jobs import losses, make_job
from training import tuners
from training.folder import JobFolder
from training.params.sft import SftParams
from training.pipelines import train as pipeline
from training.report import Report

SETTINGS = {
    "train_type": "vera",
    "vera_rank": 16,
    "vera_dropout": 0.1,
    "torch_dtype": "float32",
    "split_dataset_ratio": 0,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.05,
    "max_steps": 6,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": ["none"],
}
IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])


@pytest.fixture
def train(tmp_path: Path, tiny: Path, lines: Path) -> Callable[..., JobFolder]:
    """Run a job in this process."""

    def run(name: str, **params: Any) -> JobFolder:
        given = SETTINGS | {"model": str(tiny), "dataset": str(lines)} | params
        job = make_job(tmp_path / name, "sft", **given)
        task = job.read_task()
        assert task.training is not None
        result = pipeline.run(task.training, Report(job))
        assert (result.status, result.kind) == ("succeeded", "adapter")
        return job

    return run


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def test_it_loads_alone_without_the_shared_matrices_too(train: Callable[..., JobFolder], tiny: Path) -> None:
    checkpoints = [train(f"{kept}", vera_projection_prng_key=kept).path / "checkpoint-6" for kept in (True, False)]
    names = [load_file(checkpoint / "adapter_model.safetensors").keys() for checkpoint in checkpoints]
    assert [any("vera_A" in name for name in each) for each in names] == [True, False]
    with_them, without = (
        logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), checkpoint))
        for checkpoint in checkpoints
    )
    assert (with_them - without).abs().max() < 1e-5


def test_what_began_with_an_adapter_and_was_stopped_ends_alike(train: Callable[..., JobFolder]) -> None:
    taught = train("taught", vera_rank=8).path / "checkpoint-6"
    whole = train("whole", adapters=[str(taught)], vera_rank=256, vera_dropout=0)
    checkpoint = whole.path / "checkpoint-3"
    resumed = train(
        "resumed", adapters=[str(taught)], vera_rank=256, vera_dropout=0, resume_from_checkpoint=str(checkpoint)
    )
    assert losses(whole)[1] < losses(train("new", vera_rank=8))[1]
    assert list(losses(resumed).values()) == list(losses(whole).values())[3:]


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"lora_rank": 4}, ("lora_rank", "only train_type lora or ")),
        ({"init_weights": "gaussian"}, ("init_weights", "only train_type lora or ")),
        ({"target_modules": ["q_proj"], "target_regex": "q_proj"}, ("target_modules", "give one of the two")),
    ],
)
def test_what_it_does_not_read_is_refused(params: dict[str, Any], refused: tuple[str, str]) -> None:
    ((name, reason),) = tuners.refusals(SftParams.model_validate({"train_type": "vera"} | params))
    assert (name, refused[1] in reason) == (refused[0], True)
