"""Texts and checkpoints without folders."""

import json
from pathlib import Path

import pytest

from tests.training.jobs import make_data, make_model
from training.discreet import without_folders
from training.folder import JobFolder
from training.params.task import TASK
from training.report import Report
from training.run import run


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model '/srv/my models/tiny' cannot be loaded", "model 'tiny' cannot be loaded"),
        ("model '/model' cannot be loaded", "model 'model' cannot be loaded"),
        ('File "/usr/lib/python3.11/json/__init__.py", line 2', 'File "__init__.py", line 2'),
        ("[Errno 2] No such file: /srv/state/jobs/job-1/2/x.json, again", "[Errno 2] No such file: x.json, again"),
        ("base_model:adapter:/srv/models/tiny", "base_model:adapter:tiny"),
        ("~/models/tiny has no config.json", "tiny has no config.json"),
        ("(/srv/a/b/)", "(b)"),
        ("see https://huggingface.co/org/model/blob/main", "see https://huggingface.co/org/model/blob/main"),
        ("rewards/margins and org/model of 3/4 and / or", "rewards/margins and org/model of 3/4 and / or"),
    ],
)
def test_of_a_path_its_last_part_is_told(text: str, told: str) -> None:
    assert without_folders(text) == told


@pytest.mark.parametrize("discreet", [True, False])
def test_a_checkpoint_tells_its_base_as_a_folder_only_to_this_machine(tmp_path: Path, discreet: bool) -> None:
    """PiSSA's has a second configuration, and its weights are loaded again to go on."""
    model, data = make_model(tmp_path / "tiny"), make_data(tmp_path / "lines.jsonl")
    params = {"model": str(model), "dataset": [str(data)], "max_steps": 2, "init_weights": "pissa", "report_to": "none"}
    (tmp_path / "job").mkdir()
    job = JobFolder(tmp_path / "job")
    job.write_task(TASK.validate_python({"task": "sft", "params": params, "discreet": discreet}))
    assert run(job, Report(job)).status == "succeeded"
    checkpoint = job.path / "checkpoint-2"
    configs = [json.loads(file.read_text()) for file in checkpoint.rglob("adapter_config.json")]
    assert [config["base_model_name_or_path"] for config in configs] == ["tiny" if discreet else str(model)] * 2
    assert (checkpoint / "training_args.bin").exists() is not discreet
    told = [file for file in checkpoint.rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()]
    assert {file.name for file in told} == {"args.json"} or not discreet
