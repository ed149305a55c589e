"""AdaLoRA: its ranks fall to what was asked for, and may come back. What it has in common with others is in
test_kinds.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engines.capabilities import AdapterSupport
from engines.errors import InvalidRequest, UnsupportedParameter
from server.fine_tuning.servable import check_servable
from tests.training.jobs import losses, make_job
from training import tuners
from training.folder import JobFolder
from training.params.sft import SftParams
from training.pipelines import train as pipeline
from training.report import Report
from training.trainers.job.job import train as train_with_it

SETTINGS: dict[str, Any] = {
    "train_type": "adalora",
    "adalora_init_r": 4,
    "adalora_target_r": 2,
    "adalora_tinit": 1,
    "adalora_tfinal": 2,
    "lora_dropout": 0.1,
    "torch_dtype": "float32",
    "split_dataset_ratio": 0,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.05,
    "max_steps": 8,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": ["none"],
}
IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])


class Training:
    """Jobs in this process, and the models that they trained."""

    def __init__(self, folder: Path, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.models: dict[Path, Any] = {}
        self._folder = folder
        self._data = data
        monkeypatch.setattr(pipeline, "train", self._train)

    def _train(self, trainer: Any) -> Any:
        self.models[trainer.job.report.folder.path] = trainer.model
        return train_with_it(trainer)

    def __call__(self, name: str, **params: Any) -> JobFolder:
        given = SETTINGS | {"model": str(self.base), "dataset": str(self._data)} | params
        job = make_job(self._folder / name, "rlhf" if "rlhf_type" in params else "sft", **given)
        task = job.read_task()
        assert task.training is not None
        assert pipeline.run(task.training, Report(job)).status == "succeeded"
        return job


@pytest.fixture
def train(tmp_path: Path, tiny: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path, tiny, lines, monkeypatch)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def test_the_ranks_fall_to_the_target_on_average(train: Training) -> None:
    job = train("job")
    kept = {}
    for step in (2, 8):
        pattern = json.loads((job.path / f"checkpoint-{step}" / "adalora" / "rank_pattern.json").read_text())
        kept[step] = sum(sum(mask) for mask in pattern.values()) / len(pattern)
    assert 2 < kept[2] < 4
    assert kept[8] == 2
    weights = load_file(job.path / "checkpoint-8" / "adapter_model.safetensors")
    ranks = [len(weight) for name, weight in weights.items() if ".lora_A." in name]
    assert len(set(ranks)) > 1  # some layers have kept more than others


@pytest.mark.parametrize("step", [2, 6])
def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(train: Training, step: int) -> None:
    """Before the ranks are settled (what was given up may come back), and after."""
    whole = train("whole")
    resumed = train("resumed", resume_from_checkpoint=str(whole.path / f"checkpoint-{step}"))
    assert list(losses(resumed).values()) == list(losses(whole).values())[step:]
    for name in ("adapter_model.safetensors", "adalora/adapter_model.safetensors"):
        first, second = (load_file(job.path / "checkpoint-8" / name) for job in (whole, resumed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[each], second[each]) for each in first)


def test_its_loss_has_pefts_penalty_whatever_the_batches(train: Training) -> None:
    """PEFT adds it to the loss that a model computes itself, and not to ours."""
    once = {"max_steps": 2, "adalora_tinit": 0, "adalora_tfinal": 0, "save_steps": 1, "lora_dropout": 0}
    plain = losses(train("plain", adalora_orth_reg_weight=0, **once))[1]
    job = train("with", adalora_orth_reg_weight=0.5, **once)
    in_parts = train(
        "parts", adalora_orth_reg_weight=0.5, per_device_train_batch_size=1, gradient_accumulation_steps=2, **once
    )
    model = train.models[train("begun", adalora_orth_reg_weight=0.5, learning_rate=1e-30, **once).path]
    model.eval()
    model.peft_config["default"].orth_reg_weight = 0.5
    penalised = model(input_ids=IDS, labels=IDS).loss
    model.peft_config["default"].orth_reg_weight = 0
    penalty = (penalised - model(input_ids=IDS, labels=IDS).loss).item()
    assert penalty > 0.1
    assert losses(job)[1] - plain == pytest.approx(penalty, abs=1e-4)
    assert losses(in_parts)[1] == pytest.approx(losses(job)[1], abs=1e-4)


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
def test_methods_that_compare_add_the_penalty_to_their_loss_once(
    train: Training, tmp_path: Path, lines: Path, method: str
) -> None:
    """Whatever its batches, a training that learns nothing yet has the penalty of its adapter, and no other loss."""
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    more = {"dpo": {"rejected_response": "no"}, "kto": {"label": True}, "grpo": {}}[method]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    answers = {"num_generations": 2, "max_completion_length": 4, "reward_funcs": ["format"]}
    given: dict[str, Any] = {
        "dataset": str(tmp_path / "rows.jsonl"), "rlhf_type": method, "max_steps": 2, "adalora_tinit": 0,
        "adalora_tfinal": 0, "lora_dropout": 0, "gradient_accumulation_steps": 2, "learning_rate": 1e-30,
        **(answers if method == "grpo" else {}),
    }  # fmt: skip
    plain, penalised = (
        losses(train(f"with {weight}", **given, adalora_orth_reg_weight=weight))[1] for weight in (0, 0.5)
    )
    [model] = [model for folder, model in train.models.items() if folder.name == "with 0.5"]
    model.peft_config["default"].orth_reg_weight = 0.5
    penalty = model(input_ids=IDS, labels=IDS).loss
    model.peft_config["default"].orth_reg_weight = 0
    penalty -= model(input_ids=IDS, labels=IDS).loss
    assert penalised - plain == pytest.approx(penalty.item(), abs=1e-4)


def test_steps_that_leave_none_for_ranks_to_fall_in_are_refused(train: Training) -> None:
    with pytest.raises(InvalidRequest, match="none of the 8 steps") as refused:
        train("job", adalora_tfinal=7)
    assert refused.value.param == "adalora_tfinal"


def test_a_checkpoint_of_another_tuner_is_not_resumed(train: Training) -> None:
    lora = train("lora", train_type="lora")
    (lora.path / "checkpoint-2" / "args.json").unlink()
    with pytest.raises(InvalidRequest, match="did not have train_type adalora"):
        train("adalora", resume_from_checkpoint=str(lora.path / "checkpoint-2"))


def test_lora_goes_on_with_what_it_has_made(train: Training) -> None:
    made = train("job")
    adapter = str(made.path / "checkpoint-8")
    after = train("after", train_type="lora", adapters=[adapter], load_args=False)
    assert losses(after)[1] < losses(made)[1]


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"lora_rank": 4}, ("lora_rank", "only train_type lora or ")),
        ({"adapters": ["a"]}, ("adapters", "begins with an adapter of its own")),
        ({"adalora_init_r": 4}, ("adalora_target_r", "below that")),
    ],
)
def test_what_it_does_not_read_is_refused(params: dict[str, Any], refused: tuple[str, str]) -> None:
    ((name, reason),) = tuners.refusals(SftParams.model_validate({"train_type": "adalora"} | params))
    assert (name, refused[1] in reason) == (refused[0], True)


def test_ranks_that_are_not_served_are_refused_before_they_are_trained() -> None:
    support = AdapterSupport(max_rank=8, linears={"q_proj": (8, 8)})
    check_servable(SftParams(train_type="adalora", adalora_init_r=8), support)
    with pytest.raises(UnsupportedParameter, match="above the 8 served") as refused:
        check_servable(SftParams(train_type="adalora"), support)
    assert refused.value.param == "parameters.adalora_init_r"
