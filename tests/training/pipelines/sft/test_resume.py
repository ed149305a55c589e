"""A supervised training goes on from a checkpoint or an adapter as if it had never stopped, or says why it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.errors import InvalidRequest, TuneserveError
from tests.training.jobs import losses, make_job
from tests.training.pipelines.sft.runs import weights
from training.folder import JobFolder, Message, Result
from training.refusals.supported import refusals


def test_resumed_training_ends_as_one_that_was_never_stopped(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train(lora_dropout=0.1)
    resumed, result = train(lora_dropout=0.1, resume_from_checkpoint=str(whole.path / "checkpoint-3"))

    assert result.final_step == 6
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}
    for name, tensor in weights(whole, 6).items():
        assert torch.equal(tensor, weights(resumed, 6)[name])


def test_resumed_full_training_ends_as_one_that_was_never_stopped(
    train: Callable[..., tuple[JobFolder, Result]],
) -> None:
    whole, _ = train(train_type="full")
    resumed, _ = train(train_type="full", resume_from_checkpoint=str(whole.path / "checkpoint-3"))

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}
    for name, tensor in weights(whole, 6).items():
        assert torch.equal(tensor, weights(resumed, 6)[name]), (tensor - weights(resumed, 6)[name]).abs().max()


@pytest.mark.parametrize(
    "first",
    [{"lora_rank": 3, "lora_alpha": 24, "use_rslora": True}, {"init_weights": "pissa", "lora_rank": 2}],
    ids=["lora", "pissa"],
)
def test_resumed_training_that_began_with_an_adapter_ends_as_one_that_was_never_stopped(
    train: Callable[..., tuple[JobFolder, Result]], first: dict[str, Any]
) -> None:
    taught, result = train(**first, lora_dropout=0.1)
    adapter = str(taught.path / result.artifact)
    whole, _ = train(adapters=adapter)
    resumed, _ = train(adapters=adapter, resume_from_checkpoint=str(whole.path / "checkpoint-3"), load_args=False)

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}
    for name, tensor in weights(whole, 6).items():
        assert torch.equal(tensor, weights(resumed, 6)[name])
    config = json.loads((resumed.path / "checkpoint-6" / "adapter_config.json").read_text())
    assert config == json.loads((whole.path / "checkpoint-6" / "adapter_config.json").read_text())


def test_a_checkpoint_alone_says_with_which_adapter_it_began(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    taught, result = train(lora_rank=3, lora_alpha=24)
    whole, _ = train(adapters=str(taught.path / result.artifact))
    resumed, _ = train(resume_from_checkpoint=str(whole.path / "checkpoint-3"))

    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}


def test_what_goes_on_with_other_rows_says_so(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path, tmp_path: Path
) -> None:
    whole, _ = train()
    checkpoint = str(whole.path / "checkpoint-3")
    rows = lines.read_text().splitlines(keepends=True)
    copied, other, fewer = (tmp_path / f"{name}.jsonl" for name in ("copied", "other", "fewer"))
    copied.write_text("".join(rows))
    other.write_text("".join(reversed(rows)))
    fewer.write_text("".join(rows[:5]))

    def told(data: Path) -> list[str]:
        job, _ = train(resume_from_checkpoint=checkpoint, dataset=str(data))
        said = [event.message for event, _ in job.read_events() if isinstance(event, Message)]
        return [text for text in said if "other rows" in text]

    assert told(copied) == []
    (said,) = told(other)
    assert said.startswith("checkpoint-3 has learned from other rows (12 samples, and 12 now): the training goes on at")
    assert "(12 samples, and 5 now)" in told(fewer)[0]


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_what_takes_the_weights_only_goes_on_after_an_interruption(
    train: Callable[..., tuple[JobFolder, Result]], train_type: str
) -> None:
    shape = {"lora_rank": 3, "lora_alpha": 24} if train_type == "lora" else {}
    taught, _ = train(train_type=train_type, **shape)
    begun = {"resume_from_checkpoint": str(taught.path / "checkpoint-6"), "resume_only_model": True}
    whole, _ = train(train_type=train_type, load_args=False, **begun)
    again = whole.read_task().going_on_from(whole.path / "checkpoint-3").training
    resumed, _ = train(**again.model_dump(exclude_unset=True))

    assert losses(whole)[1] < losses(taught)[1]
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}


@pytest.mark.parametrize(
    ("given", "param", "reason"),
    [
        ({"load_args": False}, "adapters", "the adapter that is to be named here"),
        ({"train_type": "full"}, "train_type", "was trained with train_type lora, not full"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_make_another_training_of_one_that_began_with_an_adapter_is_refused(
    train: Callable[..., tuple[JobFolder, Result]], tmp_path: Path, given: dict[str, Any], param: str, reason: str
) -> None:
    taught, result = train()
    begun, _ = train(adapters=str(taught.path / result.artifact))

    asked = make_job(tmp_path / "next", "sft", resume_from_checkpoint=str(begun.path / "checkpoint-3"), lora_rank=5)
    assert ("lora_rank", "training goes on with the adapter in adapters, which has its own: leave it out") in refusals(
        asked.read_task().completed()
    )
    with pytest.raises(InvalidRequest, match=reason) as refused:
        train(resume_from_checkpoint=str(begun.path / "checkpoint-3"), **given)
    assert refused.value.param == param


def test_an_adapter_of_another_shape_is_not_resumed(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    """PEFT would load the weights, and scale them otherwise."""
    first, result = train(lora_alpha=8)
    other, _ = train(lora_alpha=16)
    begun, _ = train(adapters=str(first.path / result.artifact))
    named = {"adapters": str(other.path / result.artifact)}

    with pytest.raises(InvalidRequest, match="lora_alpha 8, and the one that is trained 16") as refused:
        train(resume_from_checkpoint=str(begun.path / "checkpoint-3"), **named)
    assert refused.value.param == "resume_from_checkpoint"
    with pytest.raises(InvalidRequest, match="lora_alpha 8, and the one that is trained 32"):
        train(resume_from_checkpoint=str(first.path / "checkpoint-3"), load_args=False)
    with pytest.raises(InvalidRequest, match="began with a new adapter") as refused:
        train(resume_from_checkpoint=str(first.path / "checkpoint-3"), **named)
    assert refused.value.param == "adapters"
    with pytest.raises(InvalidRequest, match="did not begin with init_weights pissa") as refused:
        train(resume_from_checkpoint=str(first.path / "checkpoint-3"), init_weights="pissa")
    assert refused.value.param == "init_weights"


def test_an_adapter_that_the_training_cannot_begin_with_is_refused(
    train: Callable[..., tuple[JobFolder, Result]], tmp_path: Path
) -> None:
    taught, result = train(init_weights="pissa", lora_rank=2)
    adapter = taught.path / result.artifact
    for given, param, reason in (
        ({"adapters": str(adapter), "train_type": "vera"}, "train_type", "is of type LORA"),
        ({"adapters": str(adapter / "pissa")}, "adapters", "has changed"),
        ({"adapters": str(tmp_path)}, "adapters", "has no adapter_config.json"),
        ({"adapters": str(tmp_path / "gone")}, "adapters", "there is no folder 'gone'"),
        ({"resume_from_checkpoint": str(tmp_path / "gone")}, "resume_from_checkpoint", "there is no folder 'gone'"),
    ):
        with pytest.raises(TuneserveError, match=reason) as refused:
            train(load_args=False, **given)
        assert refused.value.param == param


def test_resuming_at_the_end_gives_the_result_again(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train()
    _, result = train(resume_from_checkpoint=str(whole.path / "checkpoint-6"))

    assert (result.status, result.artifact) == ("succeeded", "checkpoint-6")


def test_with_resume_only_model_the_steps_begin_anew(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train()
    again, result = train(resume_from_checkpoint=str(whole.path / "checkpoint-6"), resume_only_model=True)

    assert result.final_step == 6
    assert losses(again)[1] < losses(whole)[1]


def test_a_checkpoint_without_its_optimizer_is_not_resumed(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    whole, _ = train(save_only_model=True)

    with pytest.raises(InvalidRequest, match=r"optimizer\.pt"):
        train(resume_from_checkpoint=str(whole.path / "checkpoint-3"))


def test_in_place_of_the_folder_of_a_training_a_checkpoint_in_it_is_to_be_named(
    train: Callable[..., tuple[JobFolder, Result]],
) -> None:
    whole, _ = train()

    with pytest.raises(InvalidRequest, match="name a checkpoint in it, such as checkpoint-6") as refused:
        train(resume_from_checkpoint=str(whole.path))
    assert refused.value.param == "resume_from_checkpoint"


def test_training_goes_on_with_an_adapter(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    first, result = train()
    second, _ = train(adapters=str(first.path / result.artifact))

    assert losses(second)[1] < losses(first)[1]


def test_what_a_checkpoint_was_trained_with_is_read_back(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    first, result = train(lora_rank=2, learning_rate=5e-3)
    args = json.loads((first.path / result.artifact / "args.json").read_text())
    second, again = train(adapters=str(first.path / result.artifact), load_args=True)

    assert (args["lora_rank"], args["train_type"]) == (2, "lora")
    assert "hub_token" not in args
    assert json.loads((second.path / again.artifact / "args.json").read_text())["lora_rank"] == 2
