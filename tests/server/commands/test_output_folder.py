"""Where a command's results go."""

import re
from pathlib import Path

import pytest

from engines.errors import Conflict, InvalidRequest
from server.commands.output_folder import new_training_folder
from training.folder import JobError, JobFolder, Message, Result, Started
from training.params.export import MergeParams
from training.params.export_result import result_folder
from training.params.sft import SftParams


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_training_has_a_folder_of_its_own(here: Path) -> None:
    folders = [new_training_folder(SftParams(model="org/tiny-model")) for _ in range(3)]
    assert {folder.parent for folder in folders} == {here / "output" / "tiny-model"}
    assert [re.fullmatch(r"v(\d)-\d{8}-\d{6}", folder.name)[1] for folder in folders] == ["0", "1", "2"]


def test_numbers_go_on_where_folders_were_removed(here: Path) -> None:
    for name in ("v0-old", "v7-20260101-000000", "vX", "v9"):
        (here / "out" / name).mkdir(parents=True)
    assert new_training_folder(SftParams(model="m", output_dir="out")).name.startswith("v8-")


def test_without_versions_it_is_the_folder_itself_and_used_once(here: Path) -> None:
    params = SftParams(model="m", output_dir="out", add_version=False)
    assert new_training_folder(params) == here / "out"
    (here / "out" / "task.json").touch()
    with pytest.raises(Conflict, match="earlier run"):
        new_training_folder(params)


def test_a_run_that_failed_before_its_first_step_does_not_use_it_up(here: Path) -> None:
    params = SftParams(model="m", output_dir="out", add_version=False)
    folder = JobFolder(new_training_folder(params))
    failed = Result(status="failed", error=JobError(code="invalid_request", message="there is no such model"))
    for name in ("task.json", "worker.log", "args.json"):
        (folder.path / name).touch()
    folder.append(Message(time=0, message="the model is loaded"))
    folder.write_result(failed)
    assert new_training_folder(params) == here / "out"
    assert list(folder.path.iterdir()) == []
    (folder.path / "args.json").touch()  # of no run
    assert new_training_folder(params) == here / "out"
    for name in ("args.json", "task.json", "a file of somebody's"):
        (folder.path / name).touch()
    folder.write_result(failed)
    with pytest.raises(Conflict, match="earlier run"):
        new_training_folder(params)
    (folder.path / "a file of somebody's").unlink()
    folder.append(Started(time=0, total_steps=2, rows=1))
    with pytest.raises(Conflict, match="earlier run"):
        new_training_folder(params)


def test_a_checkpoint_says_which_model_it_is_of(here: Path) -> None:
    checkpoint = here / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "args.json").write_text('{"model": "org/tiny-model"}')
    for params in (SftParams(resume_from_checkpoint="run/checkpoint-3"), SftParams(adapters=("run/checkpoint-3",))):
        assert new_training_folder(params).parent == here / "output" / "tiny-model"


def test_an_adapter_alone_says_it_too(here: Path) -> None:
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/tiny-model"}')
    assert new_training_folder(SftParams(adapters=("adapter",))).parent == here / "output" / "tiny-model"


def test_a_model_must_be_named(here: Path) -> None:
    for params in (SftParams(), SftParams(adapters=("none/there",))):
        with pytest.raises(InvalidRequest, match="name the model"):
            new_training_folder(params)
    assert list(here.iterdir()) == []


def test_a_merged_model_goes_beside_its_adapter(here: Path) -> None:
    adapter = here / "run" / "checkpoint-3"
    adapter.mkdir(parents=True)
    assert (
        result_folder(MergeParams(adapters=("first", f"sql={adapter}")), "merged")
        == here / "run" / "checkpoint-3-merged"
    )
    assert result_folder(MergeParams(adapters=("run/checkpoint-3/",)), "merged") == here / "run" / "checkpoint-3-merged"


def test_one_of_the_hub_goes_to_output(here: Path) -> None:
    assert result_folder(MergeParams(adapters=("org/sql",)), "merged") == here / "output" / "sql-merged"


def test_a_merged_model_goes_where_it_is_told_to_but_over_nothing(here: Path) -> None:
    params = MergeParams(adapters=("a",), output_dir="there")
    assert result_folder(params, "merged") == here / "there"
    Path("there").mkdir()
    with pytest.raises(Conflict, match="is there already"):
        result_folder(params, "merged")
