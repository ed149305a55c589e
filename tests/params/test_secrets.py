"""What is said of secrets at their fields, for all parameters of all commands: they stand nowhere, and the worker has
them."""

import re
from pathlib import Path
from typing import Any

import pytest

from engines.params.about import facts, secrets
from engines.params.secrets import secrets_of, with_secrets
from server.commands.argv import parse
from server.commands.params import COMMANDS
from server.jobs.job import given_parameters
from training.folder import JobFolder
from training.params.sft import SftParams
from training.params.task import TASK, TASKS, params_of
from training.refusals.supported import supported
from training.trainers.job.write_args import write_args

SOUNDS_SECRET = re.compile(r"(^|_)(token|tokens|key|keys|secret|password|credentials?|auth)(_|$)|^database_url$")
NO_SECRET = {
    "api_key_file", "average_tokens_across_devices", "bos_token_id", "max_new_tokens", "max_num_batched_tokens",
    "key_max_outputs", "key_max_running_requests", "key_requests_per_minute", "key_tokens_per_minute", "metrics_auth",
    "ssl_keyfile", "trainable_token_indices", "vera_projection_prng_key",
}  # fmt: skip
S3CRET = "hf_s3cret"
REQUIRED: dict[str, dict[str, Any]] = {"rlhf": {"rlhf_type": "dpo"}}
EVERY_SECRET = [(command, name) for command, model in COMMANDS.items() for name in sorted(secrets(model))]


def test_what_sounds_like_a_secret_says_so_at_its_field() -> None:
    sounds = {(c, name) for c, model in COMMANDS.items() for name in model.model_fields if SOUNDS_SECRET.search(name)}
    assert {(c, name) for c, name in sounds if name not in NO_SECRET} == set(EVERY_SECRET)


@pytest.mark.parametrize(("command", "name"), EVERY_SECRET)
def test_a_secret_stands_in_nothing_that_is_written_or_printed(command: str, name: str) -> None:
    params = COMMANDS[command].model_validate({**REQUIRED.get(command, {}), name: S3CRET})
    assert name in params.model_fields_set and S3CRET in str(getattr(params, name))
    for text in (repr(params), str(params), params.model_dump_json(), params.model_dump_json(exclude_unset=True)):
        assert S3CRET not in text and not re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize(("command", "name"), EVERY_SECRET)
def test_a_wrong_secret_is_not_quoted(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(COMMANDS[command], [f"--{name}", S3CRET, "--seed", "-1"], prog="p")
    with pytest.raises(SystemExit):
        parse(COMMANDS[command], [f"--{name}", S3CRET, f"--{name}", S3CRET], prog="p")
    assert S3CRET not in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_no_file_or_row_of_a_job_holds_a_secret_and_its_worker_has_them_all(task: str, tmp_path: Path) -> None:
    given = {name: f"{S3CRET}-{name}" for name in secrets(params_of(TASKS[task])) & supported(params_of(TASKS[task]))}
    made = TASK.validate_python({"task": task, "params": {**REQUIRED.get(task, {}), **given}})
    folder = JobFolder(tmp_path)
    folder.write_task(made)
    if isinstance(made.params, SftParams):
        write_args(made.params, tmp_path)
    assert not any(S3CRET in file.read_text() for file in tmp_path.iterdir())
    assert not any(name in str(given_parameters(made)) for name in given)
    read = folder.read_task(secrets_of(made.params)).params
    assert {name: getattr(read, name) for name in given} == given
    assert folder.read_task({}).params.model_fields_set == made.params.model_fields_set - given.keys()


def test_a_worker_gets_each_secret_by_a_variable_of_its_own() -> None:
    for model in map(params_of, TASKS.values()):
        variables = [said.variable for name, said in facts(model) if said.secret and name in supported(model)]
        assert None not in variables and len(variables) == len(set(variables))


def test_an_empty_variable_gives_nothing() -> None:
    assert with_secrets(SftParams(), {"HF_TOKEN": ""}).hub_token is None
