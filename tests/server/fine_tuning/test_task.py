"""What the worker is told of a fine-tuning request."""

from pathlib import Path
from typing import Any

import pytest

from engines.params.deploy import DeployParams
from server.fine_tuning.record import FineTuning
from server.fine_tuning.task import DataFiles, TooManyCheckpoints, final_task, first_task, samples_in_a_pass
from training.auto import Hyperparameters, choose
from training.methods import METHODS
from training.refusals.supported import refusals

FILES = DataFiles(training=Path("/jobs/1/data/train.jsonl"), validation=None, adapter=None)
SERVED = DeployParams(model="/models/demo", torch_dtype="float32", max_length=100, system="Be brief.")
CHOSEN = Hyperparameters(n_epochs=3, batch_size=8, learning_rate_multiplier=5.0)


def record(**changes: Any) -> FineTuning:
    values = {
        "model": "demo",
        "name": "ft:demo:org::abc",
        "owner": "org",
        "training_file": "file-1",
        "validation_file": None,
        "method": "supervised",
        "wanted": Hyperparameters(),
        "suffix": None,
        "seed": 7,
        "parameters": {},
    }
    return FineTuning.model_validate(values | changes)


def test_the_model_is_trained_as_it_is_served() -> None:
    params = first_task(record(), FILES, SERVED).params
    assert (params.model, params.torch_dtype, params.max_length) == ("/models/demo", "float32", None)
    assert (params.dataset, params.split_dataset_ratio, params.strict) == (("/jobs/1/data/train.jsonl",), 0, True)
    assert (params.seed, params.system) == (7, "Be brief.")


@pytest.mark.parametrize("name", ["max_length", "max_model_len"])
def test_positions_are_stretched_as_they_are_where_it_is_served(name: str) -> None:
    served = DeployParams.model_validate({"model": "m", "rope_scaling": "linear", name: 256})
    params = first_task(record(), FILES, served).params
    assert (params.rope_scaling, params.max_length) == ("linear", 256)


def test_the_training_sees_the_template_that_the_model_is_served_with(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ mood }}{{ messages[0].content }}")
    served = DeployParams(model="m", chat_template=str(file), chat_template_kwargs={"mood": "merry"})
    params = first_task(record(), FILES, served).params
    assert (params.chat_template, params.chat_template_kwargs) == (file.read_text(), {"mood": "merry"})
    params = first_task(record(parameters={"template": "chatml", "chat_template_kwargs": None}), FILES, served).params
    assert (params.template, params.chat_template, params.chat_template_kwargs) == ("chatml", None, None)


def test_hyperparameters_become_the_trainers() -> None:
    params: Any = final_task(record(), FILES, SERVED, chosen=CHOSEN, rows=60).params
    assert (params.num_train_epochs, params.learning_rate) == (3, pytest.approx(5e-4))
    assert (params.per_device_train_batch_size, params.gradient_accumulation_steps) == (4, 2)
    assert (params.save_strategy, params.logging_steps) == ("epoch", 1)


def test_a_validation_file_is_evaluated_on() -> None:
    files = DataFiles(training=FILES.training, validation=Path("/jobs/1/data/valid.jsonl"), adapter=None)
    assert first_task(record(), files, SERVED).params.val_dataset == ("/jobs/1/data/valid.jsonl",)


def test_dpo_is_the_task_rlhf() -> None:
    chosen = choose(Hyperparameters(beta=0.3), method=METHODS["dpo"], rows=60, model_parameters=None)
    task = final_task(record(method="dpo"), FILES, SERVED, chosen=chosen, rows=60)
    params: Any = task.params
    assert (task.task, params.rlhf_type, params.beta, params.rpo_alpha) == ("rlhf", "dpo", 0.3, 0.0)


def test_dpo_may_be_asked_to_learn_the_preferred_answers_too() -> None:
    params: Any = first_task(record(method="dpo", parameters={"rpo_alpha": 1.0}), FILES, SERVED).params
    assert params.rpo_alpha == 1.0


def test_parameters_replace_what_the_server_would_choose() -> None:
    given = {"lora_rank": 4, "split_dataset_ratio": 0.1, "torch_dtype": "bfloat16", "per_device_train_batch_size": 2}
    params = final_task(record(parameters=given), FILES, SERVED, chosen=CHOSEN, rows=60).params
    assert (params.lora_rank, params.split_dataset_ratio, params.torch_dtype) == (4, 0.1, "bfloat16")
    assert (params.per_device_train_batch_size, params.gradient_accumulation_steps) == (2, 4)


def test_a_long_training_logs_every_so_many_steps() -> None:
    assert final_task(record(), FILES, SERVED, chosen=CHOSEN, rows=100_000).params.logging_steps == 19


def test_checkpoints_are_limited_in_number() -> None:
    def checkpoints(**given: Any) -> None:
        final_task(record(parameters=given), FILES, SERVED, chosen=CHOSEN, rows=8000)  # 3000 steps

    checkpoints(save_steps=30)
    checkpoints(save_steps=0.01)
    for too_many in (29, 0.009):
        with pytest.raises(TooManyCheckpoints, match="save_steps"):
            checkpoints(save_steps=too_many)


@pytest.mark.parametrize(("batch", "most", "part"), [(4, None, 4), (16, None, 4), (7, None, 1), (6, 4, 3), (1, 9, 1)])
def test_a_pass_is_a_whole_part_of_a_batch(batch: int, most: int | None, part: int) -> None:
    assert samples_in_a_pass(batch, most) == part


@pytest.mark.parametrize(("batch", "most", "part"), [(4, None, 4), (7, None, 7), (6, 2, 2), (9, 2, 9), (10, None, 2)])
def test_of_answers_that_are_compared_a_pass_has_two_at_least(batch: int, most: int | None, part: int) -> None:
    assert samples_in_a_pass(batch, most, least=2) == part


def test_kto_is_the_task_rlhf_with_weights() -> None:
    wanted = Hyperparameters(beta=0.3, undesirable_weight=0.0, batch_size=7)
    chosen = choose(wanted, method=METHODS["kto"], rows=10, model_parameters=None)
    first, last = (
        first_task(record(method="kto"), FILES, SERVED),
        final_task(record(method="kto"), FILES, SERVED, chosen=chosen, rows=10),
    )
    params: Any = last.params
    assert refusals(first) == refusals(last) == []
    assert (last.task, params.rlhf_type, params.beta) == ("rlhf", "kto", 0.3)
    assert (params.desirable_weight, params.undesirable_weight) == (1.0, 0.0)
    assert (params.per_device_train_batch_size, params.gradient_accumulation_steps) == (7, 1)


def test_a_client_may_say_how_many_steps_there_are_and_which_are_logged() -> None:
    asked = record(parameters={"max_steps": 5, "logging_steps": 2, "save_steps": 1})
    params = final_task(asked, FILES, SERVED, chosen=CHOSEN, rows=100_000).params

    assert (params.max_steps, params.logging_steps, params.num_train_epochs) == (5, 2, 3)
