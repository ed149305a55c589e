"""VeRA: it learns, goes on where it stopped, loads without us, and is merged, as no engine serves it as an adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engines.capabilities import AdapterSupport
from engines.errors import UnsupportedParameter
from server.fine_tuning.servable import check_servable
from tests.training.jobs import losses, make_job
from training import tuners
from training.folder import JobFolder, Result
from training.params.export import MergeParams
from training.params.sft import SftParams
from training.pipelines import merge
from training.pipelines import train as pipeline
from training.report import Report
from training.trainers.job import train as train_with_it

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


@pytest.mark.parametrize("shared", [True, False], ids=["with the shared matrices", "without"])
def test_it_learns_and_loads_alone(
    train: Callable[..., JobFolder], tiny: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    trained: list[Any] = []

    def train_and_keep(trainer: Any) -> Result:
        trained.append(trainer.model)
        return train_with_it(trainer)

    monkeypatch.setattr(pipeline, "train", train_and_keep)
    job = train("job", vera_projection_prng_key=shared)
    told = losses(job)
    assert told[6] < told[1]
    checkpoint = job.path / "checkpoint-6"
    names = load_file(checkpoint / "adapter_model.safetensors")
    assert any("vera_A" in name for name in names) is shared
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    before = logits(base)
    alone = logits(PeftModel.from_pretrained(base, checkpoint))
    assert (alone - logits(trained[0])).abs().max() < 1e-5
    assert (alone - before).abs().max() > 1e-3


def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(train: Callable[..., JobFolder]) -> None:
    whole = train("whole")
    resumed = train("resumed", resume_from_checkpoint=str(whole.path / "checkpoint-3"))
    assert list(losses(resumed).values()) == list(losses(whole).values())[3:]
    first, second = (load_file(job.path / "checkpoint-6" / "adapter_model.safetensors") for job in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_began_with_an_adapter_and_was_stopped_ends_alike(train: Callable[..., JobFolder]) -> None:
    taught = train("taught", vera_rank=8).path / "checkpoint-6"
    whole = train("whole", adapters=[str(taught)], vera_rank=256, vera_dropout=0)
    checkpoint = whole.path / "checkpoint-3"
    resumed = train(
        "resumed", adapters=[str(taught)], vera_rank=256, vera_dropout=0, resume_from_checkpoint=str(checkpoint)
    )
    assert losses(whole)[1] < losses(train("new", vera_rank=8))[1]
    assert list(losses(resumed).values()) == list(losses(whole).values())[3:]


def test_it_is_merged(train: Callable[..., JobFolder], tiny: Path, tmp_path: Path) -> None:
    checkpoint = train("job").path / "checkpoint-6"
    folder = JobFolder(tmp_path / "merged")
    folder.path.mkdir()
    result = merge.run(MergeParams(model=str(tiny), adapters=[str(checkpoint)]), Report(folder))
    assert result.artifact is not None
    merged = AutoModelForCausalLM.from_pretrained(folder.path / result.artifact, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert (logits(merged) - logits(PeftModel.from_pretrained(base, checkpoint))).abs().max() < 1e-4


def test_a_fine_tuning_job_is_refused_before_it_trains_and_told_the_way_out() -> None:
    with pytest.raises(UnsupportedParameter, match="merge it") as refused:
        check_servable(SftParams(train_type="vera"), AdapterSupport(max_rank=64, linears={"q_proj": (8, 8)}))
    assert refused.value.param == "parameters.train_type"


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"lora_rank": 4}, ("lora_rank", "only train_type lora reads it")),
        ({"init_weights": "gaussian"}, ("init_weights", "only train_type lora reads it")),
        ({"target_modules": ["q_proj"], "target_regex": "q_proj"}, ("target_modules", "give one of the two")),
    ],
)
def test_what_it_does_not_read_is_refused(params: dict[str, Any], refused: tuple[str, str]) -> None:
    ((name, reason),) = tuners.refusals(SftParams.model_validate({"train_type": "vera"} | params))
    assert (name, refused[1] in reason) == (refused[0], True)
