"""What an inference is told: every parameter reaches what reads it, or is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from server.infer.endpoint import HERE, served_params
from tests.params.behaviour.table import another_value
from training.params.infer import AnswerParams
from training.params.task import TASK
from training.refusals.supported import refusals, supported

DATA: dict[str, Any] = {"model": "m", "val_dataset": ["d.jsonl"]}
NAMED = sorted(supported(AnswerParams) - HERE - {"use_hf", "hub_token", "template_backend"})


def refused(**params: Any) -> dict[str, str]:
    return dict(refusals(TASK.validate_python({"task": "infer", "params": params})))


@pytest.mark.parametrize("name", NAMED)
def test_what_an_engine_or_the_endpoint_reads_reaches_them(name: str) -> None:
    value = 60 if name == "engine_watchdog_timeout" else another_value(AnswerParams, name, None)
    params = AnswerParams.model_validate({**DATA, name: value})
    assert getattr(served_params(params), name) == getattr(params, name)


@pytest.mark.parametrize(
    ("given", "name", "why"),
    [
        ({"learning_rate": 1}, "learning_rate", ""),
        ({**DATA, "stream": True}, "stream", "answers to a data set are written whole"),
        ({**DATA, "dataset": ["e.jsonl"]}, "dataset", "val_dataset is what is answered"),
        ({**DATA, "adapters": ["a", "b"]}, "adapters", "one of them answers"),
        ({**DATA, "merge_lora": True}, "merge_lora", "name the adapter"),
        ({**DATA, "metric": ["acuracy"]}, "metric", "choose accuracy, rouge, bleu"),
        ({**DATA, "tensor_parallel_size": 2}, "tensor_parallel_size", "it is for vllm"),
        ({**DATA, "max_batch_size": 2, "max_num_seqs": 3}, "max_batch_size", "means the same here as max_num_seqs"),
        ({**DATA, "train_type": "full"}, "train_type", "only sft, pt and rlhf read it"),
        ({**DATA, "streaming": True}, "streaming", "only sft, pt and rlhf read it"),
        (
            {**DATA, "tools_prompt": "qwen"},
            "tools_prompt",
            "choose None or glm4 or hermes or react_en or react_zh or toolbench",
        ),
        ({**DATA, "local_repo_path": "/repo"}, "local_repo_path", "none needs a repository"),
        ({"model": "m", "result_path": "a.jsonl"}, "result_path", "it is for a data set"),
        ({"model": "m", "logprobs": True}, "logprobs", "it is for a data set"),
    ],
)
def test_what_nothing_would_read_is_refused_by_name(given: dict[str, Any], name: str, why: str) -> None:
    if name not in AnswerParams.model_fields:
        with pytest.raises(ValueError, match=name):
            refused(**given)
    else:
        assert why in refused(**given)[name]


def test_several_adapters_may_be_talked_with() -> None:
    assert refused(model="m", adapters=["a", "b"], stream=True) == {}


def test_the_data_of_a_checkpoint_is_answered_without_naming_it() -> None:
    assert refused(adapters=["a"], load_data_args=True, result_path=str(Path("a.jsonl"))) == {}
