"""What was trained is what is served: the chat template goes with the checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engines.text.prompt import Conversation, PromptRenderer
from engines.text.templates import named_template
from engines.text.tool_formats import find_tool_format
from tests.engines.pt.tiny import CONFIGS, byte_level_tokenizer, save
from tests.training.jobs import TEMPLATE, make_data, make_job
from training.data.problems import BadData
from training.folder import JobFolder
from training.params.sft import PtParams, SftParams
from training.pipelines import train as pipeline
from training.report import Report
from training.trainers.model import load_tokenizer_for

MOODY = "{{ mood }}" + TEMPLATE
Train = Callable[..., tuple[JobFolder, str]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model without a chat template."""
    folder = save(CONFIGS["llama"](), tmp_path / "base")
    byte_level_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def train(tmp_path: Path, base: Path) -> Train:
    """One step of a training; its folder, and the chat template beside the weights."""

    def run(model: Path = base, **params: Any) -> tuple[JobFolder, str]:
        rows = make_data(tmp_path / "rows.jsonl")
        given = {
            "model": str(model),
            "dataset": str(rows),
            "max_steps": 1,
            "split_dataset_ratio": 0,
            "report_to": "none",
        }
        job = make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", "sft", **given, **params)
        asked: Any = job.read_task().params
        pipeline.run(asked, Report(job))
        return job, (job.path / "checkpoint-1" / "chat_template.jinja").read_text()

    return run


def test_a_model_without_a_template_gets_one_by_its_name(train: Train) -> None:
    assert train(template="chatml")[1] == named_template("chatml")


def test_a_model_without_a_template_and_without_the_parameter_is_refused_by_name(train: Train) -> None:
    with pytest.raises(BadData, match="no chat template: name one by `template`"):
        train()


def test_a_template_of_ones_own_and_its_variables_are_in_the_checkpoint(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(MOODY)
    job, template = train(chat_template=str(file), chat_template_kwargs={"mood": "merry"}, train_type="full")
    assert template.endswith(MOODY)
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(job.path / "checkpoint-1"))
    asked = [{"role": "user", "content": "hi"}]
    assert renderer.render(Conversation(messages=asked)).startswith("merry<user>hi")
    assert renderer.render(Conversation(messages=asked, template_kwargs={"mood": "sad"})).startswith("sad<user>hi")
    assert file.name not in (job.path / "args.json").read_text()


def test_how_tools_are_told_of_is_in_the_checkpoint(train: Train, base: Path) -> None:
    job, template = train(template="chatml", tools_prompt="react_en")
    form = find_tool_format(template, {})
    assert form is not None
    assert (form.name, form.prompt) == ("react", "react_en")
    assert train(adapters=[str(job.path / "checkpoint-1")], load_args=False)[1] == template


def test_a_training_that_goes_on_with_an_adapter_keeps_its_template(train: Train) -> None:
    job, template = train(template="chatml")
    adapter = str(job.path / "checkpoint-1")
    for load_args in (True, False):
        assert train(adapters=[adapter], load_args=load_args)[1] == template
    assert train(adapters=[adapter], chat_template=TEMPLATE)[1] == TEMPLATE


def test_without_the_chat_template_messages_follow_one_another_when_served_too(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    plain = load_tokenizer_for(SftParams(model=str(base), use_chat_template=False), learns="answers").chat_template
    assert "message.role" not in plain
    assert load_tokenizer_for(PtParams(model=str(base)), learns="text").chat_template == TEMPLATE, (
        "text says nothing of messages"
    )


def test_the_parameters_are_loaded_with_a_checkpoint_unless_another_template_is_given(train: Train) -> None:
    job, _ = train(chat_template=MOODY, chat_template_kwargs={"mood": "merry"})
    said = json.loads((job.path / "checkpoint-1" / "args.json").read_text())
    assert (said["chat_template"], said["chat_template_kwargs"]) == (MOODY, {"mood": "merry"})
