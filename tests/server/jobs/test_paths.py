"""What jobs of the API may name on the server's machine, for all parameters of all tasks: what is said at a field is
what is done with it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic.fields import FieldInfo

from engines.errors import UnsupportedParameter
from engines.params.about import about, closed_to_api, closed_to_fine_tuning, facts, kinds, takes_text
from engines.params.model import ModelParams
from server.fine_tuning.parameters import check_parameters
from tests.server.api import EchoApi
from tests.server.jobs.test_routes import serving
from tests.training.jobs import make_data, make_job, make_model
from training.methods import BY_OPENAI_NAME
from training.params.task import TASKS, params_of
from training.refusals.supported import supported
from training.report import Report
from training.run import run

FIELDS = {(task, name): field for task in TASKS for name, field in params_of(TASKS[task]).model_fields.items()}
SUPPORTED = {(task, name): FIELDS[task, name] for task in TASKS for name in sorted(supported(params_of(TASKS[task])))}
CLOSED = [key for key, field in FIELDS.items() if closed_to_api(field)]
NAMES = [key for key, field in SUPPORTED.items() if about(field).names]
IS_TEXT = [name for (task, name), field in SUPPORTED.items() if task == "sft" and about(field).text]
SAID = ("names", "path", "text", "secret", "not_in_api", "api_choices")
"""What settles whether text that a client gives could be a path."""
NEEDED: dict[str, dict[str, Any]] = {
    "sft": {"model": "org/model", "dataset": ["org/data"]},
    "pt": {"model": "org/model", "dataset": ["org/data"]},
    "rlhf": {"model": "org/model", "dataset": ["org/data"], "rlhf_type": "dpo"},
    "merge": {"model": "org/model", "adapters": ["org/adapter"]},
    "infer": {"model": "org/model", "dataset": ["org/data"]},
    "export": {
        "model": "org/model",
        "adapters": ["org/adapter"],
        "merge_lora": True,
        "quant_method": "awq",
        "dataset": ["org/data"],
    },
    "eval": {"model": "org/model", "eval_dataset": ["org/data"]},
}


GROUPS = {"rlhf_type": "grpo", "num_generations": 2, "per_device_train_batch_size": 2}
BESIDE: dict[str, dict[str, Any]] = {
    "reward_model": GROUPS,
    "reward_adapters": GROUPS | {"reward_model": "org/judge"},
    "teacher_model": {"rlhf_type": "gkd"},
}
"""What is needed beside a parameter that dpo does not read."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoApi]:
    root = tmp_path_factory.mktemp("root")
    with serving(tmp_path_factory.mktemp("state"), job_roots=(str(root),), max_running_jobs=0) as api:
        yield api


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the server's that nobody may look into."""
    folder = tmp_path_factory.mktemp("canary")
    (folder / "file.json").write_text("{}\n")
    return folder


def given(field: FieldInfo, value: str) -> Any:
    """`value` in the shape that `field` takes."""
    origins = {get_origin(kind) for kind in kinds(field.annotation)}
    return [value] if tuple in origins else {"x": value} if dict in origins else value


def refused(api: EchoApi, task: str, name: str, value: str) -> dict[str, Any]:
    asked = NEEDED[task] | BESIDE.get(name, {}) | {name: given(FIELDS[task, name], value)}
    if (task, name) == ("infer", "val_dataset"):  # which is answered in place of the other
        del asked["dataset"]
    error = api.jobs.refused(task, asked)
    assert error["param"] == f"parameters.{name}"
    return error


def test_a_parameter_that_takes_text_says_what_its_text_names() -> None:
    """One that does not is closed to the API: whoever adds it decides."""
    taking = {key: about(field) for key, field in SUPPORTED.items() if takes_text(field)}
    assert [key for key, said in taking.items() if not any(getattr(said, mark) for mark in SAID)] == []


@pytest.mark.parametrize(("task", "name"), CLOSED)
def test_what_is_closed_is_refused_whatever_its_value(api: EchoApi, task: str, name: str, canary: Path) -> None:
    for value in (str(canary), "x"):
        assert "cannot be chosen" in refused(api, task, name, value)["message"]


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_a_path_outside_the_roots_is_refused_in_the_same_words_whatever_is_there(
    api: EchoApi, task: str, name: str, canary: Path
) -> None:
    there, missing = (refused(api, task, name, str(canary / file)) for file in ("file.json", "none.json"))
    assert there == missing and "must lie under a folder of job_roots" in there["message"]


def test_code_is_for_the_command_line_alone() -> None:
    for task in ("sft", "pt", "rlhf"):
        reason = closed_to_api(FIELDS[task, "custom_register_path"])
        assert reason == "it names files or code of the server's machine"


@pytest.mark.parametrize("method", BY_OPENAI_NAME.values(), ids=lambda method: method.name)
def test_fine_tuning_jobs_name_nothing_by_their_parameters(method: Any, canary: Path) -> None:
    named = [name for name, said in facts(method.params) if said.names or said.path or said.secret]
    assert named
    for name in named:
        assert closed_to_fine_tuning(method.params.model_fields[name])
        with pytest.raises(UnsupportedParameter, match="cannot be chosen"):
            check_parameters({name: str(canary)}, method, max_model_len=64)


@pytest.mark.parametrize("revision", ["../../etc", "/etc/passwd", "a/../../b"])
def test_a_revision_is_no_path(revision: str) -> None:
    with pytest.raises(ValueError, match="branch, a tag or a commit"):
        ModelParams(model_revision=revision)


# ---- what is said to be text


OPENED: set[str] = set()
"""What any function of Python's opened or listed, while somebody looked."""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir", "import") and arguments and isinstance(arguments[0], str | bytes):
        OPENED.add(str(arguments[0]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model")
    make_data(folder / "lines.jsonl")
    sys.addaudithook(_listen)
    return folder


@pytest.mark.parametrize("name", IS_TEXT)
def test_text_is_never_opened_as_a_file(name: str, tiny: Path, canary: Path, tmp_path: Path) -> None:
    value = str(canary / "file.json")
    needed = {"model": str(tiny / "model"), "dataset": [str(tiny / "lines.jsonl")], "max_steps": 1, "report_to": "none"}
    try:
        job = make_job(tmp_path / "job", "sft", **{**needed, name: given(FIELDS["sft", name], value)})
    except ValueError:
        return  # it is not even a value of that parameter
    OPENED.clear()
    run(job, Report(job))
    assert any(path.endswith("task.json") for path in OPENED)
    assert not any(str(canary) in path for path in OPENED)
