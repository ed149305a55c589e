"""A parameter that a command does not read is refused with the reason, or with the commands that read it."""

from typing import Any

import pytest

from training.params.task import TASK
from training.refusals.supported import refusals

MODEL: dict[str, Any] = {"model": "m", "dataset": ["d"]}


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        ("sft", MODEL | {"max_pixels": 9}, "images are not supported"),
        ("sft", MODEL | {"tools_prompt": "qwen"}, "choose None or glm4 or hermes or react_en or react_zh or toolbench"),
        ("sft", MODEL | {"use_chat_template": False, "tools_prompt": "react_zh"}, "nothing uses it"),
        ("sft", MODEL | {"tuner_backend": "unsloth"}, "unsloth/bin/pip install unsloth"),
        ("sft", MODEL | {"top_k": 3}, "predict_with_generate"),
        ("sft", MODEL | {"predict_with_generate": True, "top_k": 3}, "with temperature 0 no token is drawn"),
        ("pt", MODEL | {"predict_with_generate": True}, "only sft reads it"),
        ("rlhf", MODEL | {"rlhf_type": "dpo", "packing": True}, "only sft and pt read it"),
        ("merge", {"adapters": ["a"], "dataset": ["d"]}, "only sft, pt, rlhf, export and infer read it"),
        ("merge", {"adapters": ["a"], "group_size": 3}, "only export reads it"),
    ],
)
def test_what_is_not_read_is_refused_with_its_reason(task: str, given: dict[str, Any], told: str) -> None:
    name = [*given][-1]
    assert told in dict(refusals(TASK.validate_python({"task": task, "params": given})))[name]
