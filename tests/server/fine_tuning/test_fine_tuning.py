"""/v1/fine_tuning/jobs on EchoEngine, with workers that take milliseconds: OpenAI's objects from the file to the
model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.jobs.jobs import Jobs
from tests.adapter_folders import write_adapter
from tests.server.fine_tuning.conftest import Start, TrainingApi
from tests.server.keys import ASK, KEYS, TEACH, bearer
from training.folder import JobFolder

AUTO = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}


def test_a_file_becomes_a_model_that_answers(api: TrainingApi) -> None:
    file = api.upload()
    job = api.fine_tuning.create(training_file=file, suffix="mine", seed=7, metadata={"team": "a"})
    assert (job["status"], job["fine_tuned_model"], job["finished_at"]) == ("validating_files", None, None)
    assert (job["model"], job["training_file"], job["seed"], job["metadata"]) == ("echo", file, 7, {"team": "a"})
    assert job["hyperparameters"] == AUTO
    job = api.fine_tuning.wait(job["id"])
    assert (job["status"], job["error"], job["trained_tokens"]) == ("succeeded", None, 80)
    assert job["fine_tuned_model"] == f"ft:echo:tuneserve:mine:{job['id'].removeprefix('ftjob-')}"
    assert job["created_at"] <= job["finished_at"]
    assert api.answer(job["fine_tuned_model"]) != api.answer("echo")
    card = api.models()[job["fine_tuned_model"]]
    assert (card["root"], card["parent"], card["owned_by"]) == (job["id"], "echo", "tuneserve")


def test_auto_is_told_as_numbers_once_the_data_was_looked_at(api: TrainingApi) -> None:
    own: dict[str, dict[str, float]] = {"supervised": {}, "dpo": {"beta": 0.1}}
    own["kto"] = own["dpo"] | {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    for method, its_own in own.items():
        given = {"hyperparameters": {"n_epochs": 3}}
        job = api.fine_tuning.wait(api.fine_tuning.create(method={"type": method, method: given})["id"])
        numbers = {"batch_size": 4, "learning_rate_multiplier": 10.0 if method == "supervised" else 2.0, "n_epochs": 3}
        numbers |= its_own
        assert job["hyperparameters"] == numbers
        assert job["method"] == {"type": method, method: {"hyperparameters": numbers}}


def test_weights_of_kto_are_said_as_hyperparameters_or_as_parameters(api: TrainingApi) -> None:
    own = {"hyperparameters": {"undesirable_weight": 2.5}}
    said = api.fine_tuning.create(method={"type": "kto", "kto": own})
    same = api.fine_tuning.create(method={"type": "kto"}, parameters={"undesirable_weight": 2.5})
    assert said["hyperparameters"] == same["hyperparameters"]
    assert said["hyperparameters"]["undesirable_weight"] == 2.5
    reply = api.fine_tuning.post(method={"type": "kto", "kto": own}, parameters={"per_device_train_batch_size": 1})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "parameters.per_device_train_batch_size")


def test_a_seed_that_was_chosen_here_is_told(api: TrainingApi) -> None:
    seeds = {api.fine_tuning.create()["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_events_are_openais_and_the_newest_comes_first(api: TrainingApi) -> None:
    job = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    events = api.fine_tuning.events(job["id"])
    assert [event["message"] for event in reversed(events["data"])] == [
        f"Created fine-tuning job: {job['id']}",
        f"Validating training file: {job['training_file']}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/4: training loss=1.00",
        "Step 2/4: training loss=0.50",
        "Step 2: validation loss=1.00",
        "Checkpoint created at step 2",
        "Step 3/4: training loss=0.33",
        "Step 4/4: training loss=0.25",
        "Step 4: validation loss=0.50",
        "Checkpoint created at step 4",
        f"New fine-tuned model created: {job['fine_tuned_model']}",
        "The job has successfully completed",
    ]
    metrics = [event["data"] for event in events["data"] if event["type"] == "metrics"]
    assert metrics[-1] == {"step": 1, "total_steps": 4, "train_loss": 1.0, "train_mean_token_accuracy": 0.5}
    first = api.fine_tuning.events(job["id"], limit=9)
    second = api.fine_tuning.events(job["id"], after=events["data"][8]["id"])
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert first["data"] + second["data"] == events["data"]


def test_every_checkpoint_answers_and_tells_its_metrics(api: TrainingApi) -> None:
    job = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    found = api.fine_tuning.checkpoints(job["id"])
    assert [each["step_number"] for each in found["data"]] == [4, 2]
    assert found["data"][1]["metrics"] == {
        "step": 2,
        "train_loss": 0.5,
        "train_mean_token_accuracy": 0.5,
        "valid_loss": 1.0,
        "full_valid_loss": 1.0,
    }
    for each in found["data"]:
        assert each["fine_tuned_model_checkpoint"] == f"{job['fine_tuned_model']}:ckpt-step-{each['step_number']}"
        assert api.answer(each["fine_tuned_model_checkpoint"])
    page = api.fine_tuning.checkpoints(job["id"], limit=1)
    assert (page["data"], page["has_more"]) == (found["data"][:1], True)
    assert api.fine_tuning.checkpoints(job["id"], after=page["last_id"])["data"] == found["data"][1:]


def test_the_result_file_is_a_csv_of_the_metrics(api: TrainingApi) -> None:
    (file,) = api.fine_tuning.wait(api.fine_tuning.create()["id"])["result_files"]
    assert api.http.get(f"/v1/files/{file}").json()["purpose"] == "fine-tune-results"
    assert api.http.get(f"/v1/files/{file}/content").text.splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,1.0,0.5,,",
        "2,0.5,0.5,1.0,",
        "3,0.3333333333333333,0.5,,",
        "4,0.25,0.5,0.5,",
    ]


@pytest.mark.parametrize(
    ("at", "param", "code"),
    [
        ("dataset", "training_file", "invalid_training_file"),
        ("val_dataset", "validation_file", "invalid_validation_file"),
    ],
)
def test_a_bad_file_fails_the_job_before_anything_trains(api: TrainingApi, at: str, param: str, code: str) -> None:
    message = "line 2: it is not JSON"
    api.plan(error={"code": "invalid_training_file", "message": message, "param": at})
    job = api.fine_tuning.wait(api.fine_tuning.create(validation_file=api.upload())["id"])
    assert (job["status"], job["fine_tuned_model"], job["trained_tokens"], job["result_files"]) == (
        "failed", None, None, [],
    )  # fmt: skip
    assert job["error"] == {"code": code, "message": message, "param": param}
    events = api.fine_tuning.events(job["id"])["data"]
    assert (events[0]["level"], events[0]["message"]) == ("error", message)
    assert not any("started" in event["message"] for event in events)
    assert list(api.models()) == ["echo"]


def test_an_error_of_the_worker_names_what_the_request_does(api: TrainingApi) -> None:
    api.plan(error={"code": "invalid_request", "message": "no", "param": "split_dataset_ratio"})
    job = api.fine_tuning.wait(api.fine_tuning.create(parameters={"split_dataset_ratio": 1})["id"])
    assert job["error"]["param"] == "parameters.split_dataset_ratio"


def test_a_job_is_paused_resumed_and_goes_on_where_it_was(api: TrainingApi) -> None:
    api.plan(steps=60, seconds=0.05, save_every=100)
    job = api.fine_tuning.create()
    while not any("training loss" in event["message"] for event in api.fine_tuning.events(job["id"])["data"]):
        pass
    assert api.fine_tuning.move(job["id"], "pause").json()["status"] == "paused"
    again = api.fine_tuning.move(job["id"], "pause")
    assert (again.status_code, again.json()["error"]["param"]) == (409, "fine_tuning_job_id")
    api.plan(seconds=0.01)
    assert api.fine_tuning.move(job["id"], "resume").json()["status"] == "queued"
    job = api.fine_tuning.wait(job["id"])
    assert job["status"] == "succeeded"
    events = api.fine_tuning.events(job["id"])["data"]
    assert [event["data"]["step"] for event in reversed(events) if "training loss" in event["message"]] == list(
        range(1, 61)
    )
    assert len([event for event in events if event["message"] == "Fine-tuning job started"]) == 1


def test_a_running_job_says_when_it_will_be_done(api: TrainingApi) -> None:
    api.plan(steps=400, seconds=0.05, save_every=1000)
    job = api.fine_tuning.create()
    job = api.fine_tuning.wait(job["id"], "running")
    while job["estimated_finish"] is None:
        job = api.fine_tuning.wait(job["id"], "running")
    assert 5 < job["estimated_finish"] - job["created_at"] < 120
    assert api.fine_tuning.move(job["id"], "cancel").json()["estimated_finish"] is None


def test_a_cancelled_job_has_no_model(api: TrainingApi) -> None:
    api.plan(steps=1000, seconds=0.05, save_every=1)
    job = api.fine_tuning.create()
    while not api.fine_tuning.checkpoints(job["id"])["data"]:
        pass
    job = api.fine_tuning.move(job["id"], "cancel").json()
    assert (job["status"], job["fine_tuned_model"], job["error"]) == ("cancelled", None, None)
    assert api.fine_tuning.move(job["id"], "cancel").status_code == 400
    assert api.fine_tuning.move(job["id"], "resume").status_code == 409
    assert f"{job['id'].removeprefix('ftjob-')}" not in [name.split(":")[-1] for name in api.models()]


def test_what_cannot_be_served_fails_the_job_and_says_why(api: TrainingApi, tmp_path: Path) -> None:
    api.plan(adapter=str(write_adapter(tmp_path / "large", rank=17)))
    job = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    assert (job["status"], job["fine_tuned_model"], job["error"]["code"]) == ("failed", None, "publishing_failed")
    assert "rank 17" in job["error"]["message"]
    assert (list(api.models()), api.fine_tuning.checkpoints(job["id"])["data"] == []) == (["echo"], False)


def test_jobs_are_listed_in_pages_the_newest_first(api: TrainingApi) -> None:
    ids = [api.fine_tuning.create()["id"] for _ in range(3)]
    page = api.fine_tuning.page(limit=2)
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([ids[2], ids[1]], True)
    page = api.fine_tuning.page(limit=2, after=ids[1])
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([ids[0]], False)


@pytest.fixture
def on_any_database(start: Start, database_url: str) -> Iterator[TrainingApi]:
    with start(database_url=database_url) as api:
        yield api


def test_jobs_are_found_by_their_metadata(on_any_database: TrainingApi) -> None:
    api = on_any_database
    ids = {
        name: api.fine_tuning.create(metadata=metadata)["id"]
        for name, metadata in {"none": None, "a": {"team": "a"}, "b": {"team": "b", "x y": "1"}}.items()
    }

    def found(query: str) -> list[str]:
        return [job["id"] for job in api.http.get(f"/v1/fine_tuning/jobs{query}").json()["data"]]

    assert found("?metadata=null") == [ids["none"]]
    assert found("?metadata[team]=a") == [ids["a"]]
    assert found("?metadata%5Bteam%5D=b&metadata%5Bx%20y%5D=1") == [ids["b"]]
    assert found("?metadata[team]=c") == found("?metadata[nope]=a") == []
    many = "&".join(["metadata[a]=b"] * 1001)
    for query in ("metadata=a", "metadata[a%22b]=c", "metadata[a%5C]=c", "metadata[a]=%00", many):
        assert api.http.get(f"/v1/fine_tuning/jobs?{query}").status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "nope"}, 404, "model", "model_not_found"),
        ({"training_file": "file-nope"}, 404, "training_file", "file_not_found"),
        ({"validation_file": "file-nope"}, 404, "validation_file", "file_not_found"),
        ({"method": {"type": "reinforcement"}}, 400, "method.reinforcement", "missing_required_parameter"),
        ({"parameters": {"model": "other"}}, 400, "parameters.model", "unsupported_parameter"),
        ({"parameters": {"train_type": "longlora"}}, 400, "parameters.train_type", "unsupported_parameter"),
        ({"parameters": {"lora_rank": 17}}, 400, "parameters.lora_rank", "unsupported_parameter"),
        ({"parameters": {"use_liger": True}}, 400, "parameters.use_liger", "unsupported_parameter"),
        ({"parameters": {"max_length": 5000}}, 400, "parameters.max_length", "invalid_request"),
        ({"hyperparameters": {"nope": 1}}, 400, "hyperparameters.nope", "unknown_parameter"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    api: TrainingApi, body: dict[str, Any], status: int, param: str, code: str
) -> None:
    reply = api.fine_tuning.post(**body)
    assert (reply.status_code, reply.json()["error"]["param"], reply.json()["error"]["code"]) == (status, param, code)
    assert api.fine_tuning.page()["data"] == []
    assert not any(path.is_dir() for path in api.http.parts[Jobs].folders.root.rglob("ftjob-*"))


def test_a_file_of_another_purpose_is_refused(api: TrainingApi) -> None:
    reply = api.fine_tuning.post(training_file=api.upload(purpose="batch"))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "training_file")


def test_too_many_checkpoints_fail_the_job(api: TrainingApi) -> None:
    api.plan(rows=10_000)
    job = api.fine_tuning.wait(api.fine_tuning.create(parameters={"save_steps": 1})["id"])
    assert (job["error"]["code"], job["error"]["param"]) == ("invalid_parameters", "parameters.save_steps")


@pytest.mark.parametrize("checkpoint", ["", ":ckpt-step-2"])
def test_a_fine_tuned_model_is_trained_on(api: TrainingApi, checkpoint: str) -> None:
    """The new model is named after the base, as OpenAI does."""
    first = api.fine_tuning.wait(api.fine_tuning.create(suffix="one")["id"])
    model = first["fine_tuned_model"] + checkpoint
    job = api.fine_tuning.create(model=model, suffix="two")
    assert (job["status"], job["model"]) == ("validating_files", model)
    # Neither the model nor the job that made it is needed any more.
    assert api.http.delete(f"/v1/models/{model}").status_code == 200
    assert api.http.delete(f"/v1/jobs/{first['id']}").status_code == 200
    job = api.fine_tuning.wait(job["id"], "succeeded")
    assert job["fine_tuned_model"] == f"ft:echo:tuneserve:two:{job['id'].removeprefix('ftjob-')}"
    assert api.answer(job["fine_tuned_model"])
    folders = api.http.parts[Jobs].folders
    params = JobFolder(folders.attempt(job["id"], 1)).read_task().training
    assert params is not None
    assert params.adapters == (str(folders.data(job["id"]) / "adapter"),)
    files = {path.name for path in Path(params.adapters[0]).iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_alias_is_told_as_the_model_that_it_stands_for(api: TrainingApi) -> None:
    first = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    assert api.adapters.alias("best", first["fine_tuned_model"]).status_code == 200
    assert api.fine_tuning.create(model="best")["model"] == first["fine_tuned_model"]


@pytest.mark.parametrize(
    ("parameters", "param", "reason"),
    [
        ({"lora_rank": 4}, "parameters.lora_rank", "has its own: leave it out"),
        ({"init_weights": "pissa"}, "parameters.init_weights", "has its own: leave it out"),
        ({"train_type": "full"}, "model", "is an adapter: only train_type lora goes on with an adapter"),
        ({"train_type": "vera"}, "parameters.train_type", "cannot be served"),
    ],
)
def test_what_a_fine_tuned_model_has_already_is_not_chosen_again(
    api: TrainingApi, parameters: dict[str, Any], param: str, reason: str
) -> None:
    first = api.fine_tuning.wait(api.fine_tuning.create()["id"])
    reply = api.fine_tuning.post(model=first["fine_tuned_model"], parameters=parameters)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert reason in reply.json()["error"]["message"]


def test_the_worker_is_told_all_that_was_asked_for(api: TrainingApi) -> None:
    job = api.fine_tuning.create(seed=3, parameters={"lora_rank": 4, "warmup_ratio": 0.1}, validation_file=api.upload())
    job = api.fine_tuning.wait(job["id"])
    assert job["parameters"] == {"lora_rank": 4, "warmup_ratio": 0.1}
    folders = api.http.parts[Jobs].folders
    (file,) = folders.attempt(job["id"], 1).glob("task.json")
    task = json.loads(file.read_text())
    told = {name: task["params"][name] for name in ("seed", "lora_rank", "warmup_ratio", "num_train_epochs")}
    assert told == {"seed": 3, "lora_rank": 4, "warmup_ratio": 0.1, "num_train_epochs": 3}
    assert [Path(name).is_file() for name in (*task["params"]["dataset"], *task["params"]["val_dataset"])] == [True] * 2


def test_an_unknown_job_is_not_found(api: TrainingApi) -> None:
    for id in ("ftjob-nope", "ftjob-%00", "job-1", "nope"):
        for path in ("", "/events", "/checkpoints"):
            assert api.http.get(f"/v1/fine_tuning/jobs/{id}{path}").status_code == 404
        for verb in ("cancel", "pause", "resume"):
            assert api.fine_tuning.move(id, verb).status_code == 404
    for id in ("ftjob-nope", "job-1"):
        error = api.http.get(f"/v1/fine_tuning/jobs/{id}").json()["error"]
        assert (error["param"], error["code"]) == ("fine_tuning_job_id", "not_found") and id in error["message"]


def test_fine_tuning_needs_the_role_train(start: Start) -> None:
    with start(api_key=KEYS) as api:
        for key, status in ((ASK, 403), (TEACH, 200)):
            assert api.http.get("/v1/fine_tuning/jobs", headers=bearer(key)).status_code == status


def test_models_outlive_the_server_and_deleted_ones_stay_away(start: Start) -> None:
    with start() as api:
        kept, deleted = (api.fine_tuning.wait(api.fine_tuning.create()["id"])["fine_tuned_model"] for _ in range(2))
        answer = api.answer(kept)
        reply = api.http.delete(f"/v1/models/{deleted}").json()
        assert reply == {"id": deleted, "object": "model", "deleted": True}
        assert api.refused_chat(model=deleted).status == 404
    with start() as api:
        assert api.answer(kept) == answer
        assert api.refused_chat(model=deleted).status == 404
        assert deleted not in api.models()


def test_a_server_that_stops_hands_its_job_to_the_next(start: Start) -> None:
    with start() as api:
        api.plan(steps=30, seconds=0.05, save_every=5)
        id = api.fine_tuning.create()["id"]
        while not api.fine_tuning.checkpoints(id)["data"]:
            pass
    with start() as api:
        api.plan(seconds=0.01)
        job = api.fine_tuning.wait(id)
        assert job["status"] == "succeeded"
        messages = [event["message"] for event in api.fine_tuning.events(id)["data"]]
        steps = [message for message in messages if message.startswith("Step")]
        assert len(steps) == len(set(steps))
        assert messages.count(f"New fine-tuned model created: {job['fine_tuned_model']}") == 1
        assert api.answer(job["fine_tuned_model"])
