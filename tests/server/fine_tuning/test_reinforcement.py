"""OpenAI's reinforcement: a grader in the request, answers that are judged in the job."""

from pathlib import Path
from typing import Any

import openai
import pytest

from server.jobs.jobs import Jobs
from tests.server.fine_tuning.conftest import Start, TrainingApi
from training.folder import JobFolder
from training.params.rlhf import RlhfParams
from training.params.task import RlhfTask
from training.refusals.supported import refusals

CHECK = {
    "type": "string_check",
    "name": "city",
    "input": "{{sample.output_text}}",
    "reference": "{{item.city}}",
    "operation": "like",
}
JUDGE = {"type": "score_model", "name": "judge", "model": "echo", "input": [{"role": "user", "content": "Grade."}]}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
THINKS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}{{ reasoning_effort }}"
    "{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"
)
PYTHON = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1.0"}


def reinforcement(grader: dict[str, Any] = CHECK, **given: Any) -> dict[str, Any]:
    """The field `method`."""
    return {"type": "reinforcement", "reinforcement": {"grader": grader, **given}}


def params_of(api: TrainingApi, job: dict[str, Any]) -> RlhfParams:
    """What the worker of a job is told."""
    folders = api.http.parts[Jobs].folders
    params = JobFolder(folders.attempt(job["id"], 1)).read_task().training
    assert isinstance(params, RlhfParams)
    return params


def test_a_grader_becomes_the_judge_of_a_grpo_training(api: TrainingApi) -> None:
    job = api.fine_tuning.create(method=reinforcement())
    auto = dict.fromkeys(("batch_size", "learning_rate_multiplier", "n_epochs"), "auto")
    own = {"compute_multiplier": "auto", "eval_interval": "auto", "eval_samples": "auto"}
    hyperparameters = auto | own | {"reasoning_effort": "default"}
    assert job["method"] == reinforcement(hyperparameters=hyperparameters)
    job = api.fine_tuning.wait(job["id"])
    assert job["status"] == "succeeded"
    told = job["method"]["reinforcement"]["hyperparameters"]
    assert (told["batch_size"], told["compute_multiplier"], told["eval_interval"]) == (4, 1.0, "auto")
    params = params_of(api, job)
    assert (params.rlhf_type, params.grader, params.num_generations) == ("grpo", CHECK, 8)
    assert params.per_device_train_batch_size * params.gradient_accumulation_steps == 4 * 8
    assert params.temperature == 1.0


def test_hyperparameters_mean_what_openai_says(api: TrainingApi) -> None:
    given = {"batch_size": 3, "n_epochs": 2, "compute_multiplier": 0.5, "eval_interval": 5, "eval_samples": 2}
    given["learning_rate_multiplier"] = 2.0
    method = reinforcement(hyperparameters=given)
    job = api.fine_tuning.wait(api.fine_tuning.create(method=method, validation_file=api.upload())["id"])
    told = job["method"]["reinforcement"]["hyperparameters"]
    assert {name: told[name] for name in given} == given
    params = params_of(api, job)
    assert params.num_generations == 4
    assert params.per_device_train_batch_size * params.gradient_accumulation_steps == 3 * 4
    assert (params.eval_strategy, params.eval_steps, params.num_generations_eval) == ("steps", 5, 2)
    assert params.num_train_epochs == 2
    assert params.learning_rate == pytest.approx(2e-4)


def test_other_parameters_of_grpo_go_beside_them(api: TrainingApi) -> None:
    given = {"num_generations": 6, "beta": 0.0, "max_completion_length": 32, "loss_type": "dapo", "epsilon_high": 0.28}
    job = api.fine_tuning.wait(api.fine_tuning.create(method=reinforcement(), parameters=given)["id"])
    params = params_of(api, job)
    assert {name: getattr(params, name) for name in given} == given
    assert params.per_device_train_batch_size * params.gradient_accumulation_steps % 6 == 0


def test_answers_are_held_to_a_response_format(api: TrainingApi) -> None:
    method = reinforcement({**CHECK, "input": "{{sample.output_json.city}}"}, response_format=FORM)
    job = api.fine_tuning.wait(api.fine_tuning.create(method=method)["id"])
    assert job["method"]["reinforcement"]["response_format"] == FORM
    assert params_of(api, job).response_format == FORM


def test_a_reasoning_effort_is_told_to_the_template_as_in_a_chat(start: Start) -> None:
    method = reinforcement(hyperparameters={"reasoning_effort": "low"})
    with start(chat_template=THINKS, chat_template_kwargs={"mood": "merry"}) as api:
        job = api.fine_tuning.wait(api.fine_tuning.create(method=method)["id"])
        assert job["method"]["reinforcement"]["hyperparameters"]["reasoning_effort"] == "low"
        told = {"mood": "merry", "enable_thinking": True, "reasoning_effort": "low"}
        assert params_of(api, job).chat_template_kwargs == told
        reply = api.fine_tuning.post(method=method, parameters={"chat_template_kwargs": {"mood": "sad"}})
        assert reply.json()["error"]["param"] == "method.reinforcement.hyperparameters.reasoning_effort"


def test_rewards_are_in_events_checkpoints_and_the_result_file(api: TrainingApi) -> None:
    judged = {"reward": 0.25, "rewards/city/mean": 0.25, "completions/mean_length": 7.0}
    api.plan(metrics=judged, evaluated=judged | {"reward": 0.5})
    job = api.fine_tuning.wait(api.fine_tuning.create(method=reinforcement())["id"])
    messages = [event["message"] for event in api.fine_tuning.events(job["id"])["data"]]
    assert "Step 2/4, train mean reward=0.25" in messages
    assert "Step 2, full validation mean reward=0.50" in messages
    checkpoints = api.fine_tuning.checkpoints(job["id"])["data"]
    assert checkpoints[0]["metrics"]["full_valid_mean_reward"] == 0.5
    result = api.http.get(f"/v1/files/{job['result_files'][0]}/content").text.splitlines()
    assert result[0].startswith("step,train_loss,train_reward_mean,valid_reward_mean")
    assert result[2].split(",")[2:4] == ["0.25", "0.5"]


def test_python_graders_need_the_servers_word(start: Start) -> None:
    with start() as api:
        reply = api.fine_tuning.post(method=reinforcement(PYTHON))
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "method.reinforcement.grader"
        assert "--python_graders true" in reply.json()["error"]["message"]
    with start(python_graders=True) as api:
        job = api.fine_tuning.wait(api.fine_tuning.create(method=reinforcement(PYTHON))["id"])
        assert job["status"] == "succeeded"


def test_the_base_model_judges_by_the_name_that_it_is_served_by(start: Start) -> None:
    with start() as api:
        job = api.fine_tuning.wait(api.fine_tuning.create(method=reinforcement(JUDGE))["id"])
        assert job["status"] == "succeeded"
        assert job["method"]["reinforcement"]["grader"]["model"] == "echo"
        params = params_of(api, job)
        assert params.grader == {**JUDGE, "model": params.model}


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        (
            {"method": reinforcement({**JUDGE, "model": "gpt-4o"})},
            "method.reinforcement.grader",
            "the base model 'echo' judges, and not 'gpt-4o'",
        ),
        (
            {"method": reinforcement({**CHECK, "input": "{{sample.output_audio}}"})},
            "method.reinforcement.grader",
            "sample.output_audio",
        ),
        (
            {"method": reinforcement({**CHECK, "input": "{{row}}"})},
            "method.reinforcement.grader.input",
            "{{row}} is no reference",
        ),
        ({"method": reinforcement({"type": "magic"})}, "method.reinforcement.grader", "tag 'magic'"),
        (
            {"method": reinforcement(response_format={"type": "json_schema"})},
            "method.reinforcement.response_format",
            "json_schema",
        ),
        (
            {"method": reinforcement(response_format=FORM | {"json_schema": {"name": "a", "schema": {"type": "no"}}})},
            "method.reinforcement.response_format",
            "no",
        ),
        (
            {"method": reinforcement(hyperparameters={"reasoning_effort": "high"})},
            "method.reinforcement.hyperparameters.reasoning_effort",
            "chat template has no such setting",
        ),
        (
            {"method": reinforcement(hyperparameters={"eval_samples": 2})},
            "method.reinforcement.hyperparameters.eval_samples",
            "validation_file",
        ),
        (
            {"method": reinforcement(hyperparameters={"eval_interval": 2})},
            "method.reinforcement.hyperparameters.eval_interval",
            "validation_file",
        ),
        (
            {
                "method": reinforcement(hyperparameters={"compute_multiplier": 2.0}),
                "parameters": {"num_generations": 4},
            },
            "method.reinforcement.hyperparameters.compute_multiplier",
            "give one of the two",
        ),
        (
            {"method": reinforcement(), "parameters": {"grader": CHECK}},
            "parameters.grader",
            "says it in method.reinforcement",
        ),
        (
            {"method": reinforcement(), "parameters": {"gradient_accumulation_steps": 4}},
            "parameters.gradient_accumulation_steps",
            "batch_size",
        ),
        ({"method": reinforcement(), "parameters": {"reward_funcs": ["a.py:b"]}}, "parameters.reward_funcs", "files"),
    ],
)
def test_what_a_job_cannot_do_is_refused_by_name(api: TrainingApi, body: dict[str, Any], param: str, told: str) -> None:
    reply = api.fine_tuning.post(**body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert told in error["message"]
    assert api.fine_tuning.page()["data"] == []


JUDGED = {"grpo": {"num_generations": 2, "per_device_train_batch_size": 2}, "rloo": {"num_generations": 8}, "ppo": {}}
JUDGED["rloo"]["per_device_train_batch_size"] = 8


@pytest.mark.parametrize("rlhf_type", JUDGED)
def test_jobs_of_the_other_api_take_one_among_their_parameters(api: TrainingApi, rlhf_type: str) -> None:
    asked = {"model": "echo", "dataset": [api.upload()], "rlhf_type": rlhf_type, "grader": JUDGE, **JUDGED[rlhf_type]}
    reply = api.http.post("/v1/jobs", json={"type": "rlhf", "parameters": asked})
    assert reply.status_code == 200, reply.json()
    job = api.jobs.wait(reply.json()["id"])
    assert job["status"] == "succeeded"
    assert job["parameters"]["grader"] == JUDGE
    params = params_of(api, job)
    assert params.model is not None
    assert params.grader == {**JUDGE, "model": Path(params.model).name}
    assert refusals(RlhfTask(params=params)) == []


@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ({**JUDGE, "model": "gpt-4o"}, "no other than the base model answers"),
        (PYTHON, "--python_graders true"),
        ({**CHECK, "input": "{{row}}"}, "{{row}} is no reference"),
        ({"type": "magic"}, "'magic'"),
    ],
)
def test_graders_that_cannot_judge_there_are_refused_by_name(
    api: TrainingApi, grader: dict[str, Any], told: str
) -> None:
    asked = {"model": "echo", "dataset": [api.upload()], "rlhf_type": "ppo", "grader": grader}
    reply = api.http.post("/v1/jobs", json={"type": "rlhf", "parameters": asked})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "parameters.grader"), error
    assert told in error["message"]


def test_python_graders_judge_there_where_the_server_says_so(start: Start) -> None:
    with start(python_graders=True) as api:
        asked = {"model": "echo", "dataset": [api.upload()], "rlhf_type": "ppo", "grader": PYTHON}
        reply = api.http.post("/v1/jobs", json={"type": "rlhf", "parameters": asked})
        assert api.jobs.wait(reply.json()["id"])["status"] == "succeeded"


def test_openais_sdk_begins_one(openai_client: openai.OpenAI) -> None:
    file = openai_client.files.create(file=("a.jsonl", b'{"messages": []}'), purpose="fine-tune")
    method: Any = reinforcement(hyperparameters={"compute_multiplier": 0.25})
    job = openai_client.fine_tuning.jobs.create(model="echo", training_file=file.id, method=method)
    assert job.method is not None and job.method.reinforcement is not None
    assert job.method.reinforcement.grader.name == "city"
    openai_client.fine_tuning.jobs.cancel(job.id)
