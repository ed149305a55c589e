"""The form of a job's parameters: what it offers, and the request that is made of what is written in it."""

import json

import pytest

from engines.params.about import closed_to_api
from server.jobs.request import JobBody
from server.pages import form
from training.params.task import TASKS, params_of
from training.refusals.supported import supported


@pytest.mark.parametrize("task", TASKS)
def test_the_form_offers_what_a_job_of_the_api_may_be_given_and_nothing_else(task: str) -> None:
    params = params_of(TASKS[task])
    offered = [entry.name for entry in form.searched(task)]
    allowed = {name for name in supported(params) if not closed_to_api(params.model_fields[name])} - {"dry_run"}
    assert len(offered) == len(set(offered))
    assert set(offered) == allowed


@pytest.mark.parametrize("task", TASKS)
def test_every_entry_has_the_words_of_the_parameter(task: str) -> None:
    fields = params_of(TASKS[task]).model_fields
    for entry in form.entries(task):
        assert entry.help == " ".join((fields[entry.name].description or "").split())
        assert entry.section and str(entry.shape)


@pytest.mark.parametrize("task", TASKS)
def test_every_choice_of_the_form_is_one_that_jobs_take(task: str) -> None:
    required = {"rlhf_type": "dpo"} if task == "rlhf" else {}
    for entry in form.entries(task):
        for choice in entry.choices:
            params_of(TASKS[task]).model_validate({**required, entry.name: form.read_value(entry, choice)})


def test_what_most_jobs_are_given_comes_first_and_stars_before_the_rest() -> None:
    assert [entry.name for entry in form.first("rlhf")][:4] == ["model", "adapters", "dataset", "val_dataset"]
    assert "rlhf_type" in [entry.name for entry in form.first("rlhf")]
    stars = [entry.starred for entry in form.searched("sft")]
    assert stars == sorted(stars, reverse=True) and True in stars and False in stars


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("num_train_epochs", "3", 3),
        ("learning_rate", "2e-4", 2e-4),
        ("learning_rate", "much", "much"),
        ("use_dora", "true", True),
        ("train_type", "full", "full"),
        ("dataset", "file-1#500 'org/a set'", ["file-1#500", "org/a set"]),
        ("target_modules", "q_proj v_proj", ["q_proj", "v_proj"]),
        ("rope_scaling", "linear", "linear"),
        ("gradient_checkpointing_kwargs", '{"use_reentrant": false}', {"use_reentrant": False}),
    ],
)
def test_what_is_written_becomes_the_value_that_a_body_has(name: str, written: str, value: object) -> None:
    entry = form.entry("sft", name)
    request = form.with_value(form.blank("sft", "m"), entry, written)
    assert json.loads(request)["parameters"][name] == value
    assert form.with_value(request, entry, " ") == form.blank("sft", "m"), "what is emptied is taken out again"


def test_a_request_of_the_form_is_one_that_the_api_takes() -> None:
    request = form.with_data(form.blank("sft", "m"), "file-1")
    for name, written in (("learning_rate", "1e-4"), ("lora_rank", "4"), ("use_rslora", "true")):
        request = form.with_value(request, form.entry("sft", name), written)
    body = form.read_body(request)
    task = JobBody.model_validate(form.as_dry_run(body)).task()
    assert task.params.model_dump(exclude_unset=True) == {
        "model": "m",
        "dataset": ("file-1",),
        "learning_rate": 1e-4,
        "lora_rank": 4,
        "use_rslora": True,
        "dry_run": True,
    }
    command = "tuneserve sft --model m --dataset file-1 --learning_rate 0.0001 --lora_rank 4 --use_rslora true"
    assert form.as_command(body) == command


def test_a_request_begins_with_the_servers_model() -> None:
    for task in TASKS:
        assert form.read_body(form.blank(task, "m")) == {"type": task, "parameters": {"model": "m"}}
        assert form.read_body(form.blank(task, None)) == {"type": task, "parameters": {}}


def test_the_model_is_set_only_where_nothing_was_chosen() -> None:
    assert form.with_model(form.blank("sft", None), "m") == form.blank("sft", "m")
    chosen = form.with_data(form.blank("sft", "m"), "file-1")
    assert form.with_model(chosen, "other") == chosen


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"type": "sft"}', '{"type": 1, "parameters": {}}'])
def test_what_is_no_request_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="the request"):
        form.read_body(text)
