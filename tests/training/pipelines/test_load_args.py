"""What is taken from the args.json of a checkpoint that a training names."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.pipelines.load_args import with_saved_args

SAVED: dict[str, Any] = {"lora_rank": 4, "custom_register_path": ["code.py"], "dataset": ["rows.jsonl"]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "args.json").write_text(json.dumps(SAVED | {"given": list(SAVED)}))
    return str(tmp_path)


def test_it_brings_no_data_back_and_no_code_that_makes_some(checkpoint: str) -> None:
    params = with_saved_args(SftParams(adapters=(checkpoint,)))
    assert (params.lora_rank, params.custom_register_path, params.dataset) == (4, (), ())


def test_unless_it_is_asked_for_the_data(checkpoint: str) -> None:
    params = with_saved_args(SftParams(adapters=(checkpoint,), load_data_args=True))
    assert (params.lora_rank, params.custom_register_path) == (4, ("code.py",))


@pytest.mark.parametrize(
    ("saved", "given"),
    [
        ({"interleave_prob": [0.5, 0.5], "stopping_strategy": "all_exhausted"}, {}),
        ({"max_steps": 500}, {"num_train_epochs": 1}),
        ({"chat_template": "{{ x }}"}, {"template": "chatml"}),
        ({"target_regex": ".*q_proj"}, {"target_modules": ("q_proj", "v_proj")}),
        ({"boft_block_num": 4}, {"boft_block_size": 2}),
    ],
    ids=str,
)
def test_it_brings_nothing_that_would_undo_what_is_asked_for(
    checkpoint: str, saved: dict[str, Any], given: dict[str, Any]
) -> None:
    (Path(checkpoint) / "args.json").write_text(json.dumps(saved | {"given": list(saved)}))
    asked = SftParams(adapters=(checkpoint,), dataset=("rows.jsonl",), **given)
    assert with_saved_args(asked) == asked


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ({"loss_type": "dft", "packing": True}, {"rlhf_type": "dpo"}),
        ({"rlhf_type": "dpo", "beta": 0.5, "rpo_alpha": 0.2}, {"rlhf_type": "simpo"}),
        (
            {"train_type": "full", "optim": "muon", "freeze_parameters_ratio": 0.5},
            {"rlhf_type": "dpo", "train_type": "lora"},
        ),
    ],
    ids=["sft to dpo", "dpo to simpo", "full to lora"],
)
def test_it_brings_nothing_of_another_method_tuner_or_optimizer(
    checkpoint: str, saved: dict[str, Any], asked: dict[str, Any]
) -> None:
    (Path(checkpoint) / "args.json").write_text(
        json.dumps({"weight_decay": 0.3, **saved, "given": ["weight_decay", *saved]})
    )
    params = with_saved_args(RlhfParams(model=checkpoint, **asked))
    assert params.model_fields_set == {"model", "weight_decay", *asked}


def test_of_the_same_method_it_brings_back_all(checkpoint: str) -> None:
    saved = {"rlhf_type": "dpo", "beta": 0.5, "train_type": "full", "optim": "sgd"}
    (Path(checkpoint) / "args.json").write_text(json.dumps(saved | {"given": list(saved)}))
    params = with_saved_args(RlhfParams(model=checkpoint, rlhf_type="dpo"))
    assert (params.beta, params.train_type, params.optim) == (0.5, "full", "sgd")


def test_it_brings_no_code_that_judges(checkpoint: str) -> None:
    saved = {"rlhf_type": "grpo", "reward_funcs": ["code.py:judge"], "num_generations": 4}
    (Path(checkpoint) / "args.json").write_text(json.dumps(saved | {"given": list(saved)}))
    params = with_saved_args(RlhfParams(rlhf_type="grpo", adapters=(checkpoint,)))
    assert (params.num_generations, params.reward_funcs) == (4, ())


def test_one_that_another_program_wrote_says_nothing(checkpoint: str) -> None:
    (Path(checkpoint) / "args.json").write_text(json.dumps(SAVED | {"tuner_type": "lora"}))
    given = SftParams(adapters=(checkpoint,), learning_rate=1e-3)
    assert with_saved_args(given) == given


@pytest.mark.parametrize("broken", ["{", "[]", '{"given": ["lora_rank"]}'])
def test_one_that_is_broken_is_refused(checkpoint: str, broken: str) -> None:
    (Path(checkpoint) / "args.json").write_text(broken)
    with pytest.raises(InvalidRequest, match="repair it") as refused:
        with_saved_args(SftParams(adapters=(checkpoint,)))
    assert refused.value.param == "load_args"


def test_where_nothing_names_a_model_it_is_the_one_that_the_adapter_names(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "revision": "v2"}))
    found = with_saved_args(SftParams(adapters=(f"mine={checkpoint}",)))
    assert (found.model, found.model_revision) == ("org/base", "v2")
    assert with_saved_args(SftParams(model="other", adapters=(checkpoint,))).model == "other"
