"""What is taken from the args.json of a checkpoint that a training names."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest
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
