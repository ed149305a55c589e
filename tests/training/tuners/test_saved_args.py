"""args.json states what was done, also where training goes on with an adapter that somebody else made."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.jobs import make_data, make_job, make_model
from training.report import Report
from training.run import run
from training.tuners import TUNERS

SHAPES: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 3, "lora_alpha": 5, "lora_dropout": 0.25, "use_rslora": True, "target_modules": ["q_proj"]},
    "vera": {"vera_rank": 5, "vera_dropout": 0.25, "vera_d_initial": 0.5, "target_modules": ["q_proj"]},
    "boft": {"boft_block_num": 8, "boft_dropout": 0.25, "target_modules": ["q_proj"]},
    "fourierft": {"fourier_n_frequency": 40, "fourier_scaling": 100.0, "target_modules": ["q_proj"]},
    "bone": {"lora_rank": 4, "lora_dropout": 0.25, "init_weights": "bat", "target_modules": ["q_proj"]},
    "lokr": {"lora_rank": 3, "lora_alpha": 5, "target_modules": ["q_proj"]},
    "ia3": {"target_modules": ["down_proj", "q_proj"]},
    "trainable_tokens": {"trainable_token_indices": [3, 5]},
}


def trained(folder: Path, **params: Any) -> Path:
    """The last checkpoint of a training of one step."""
    quick = {"max_steps": 1, "split_dataset_ratio": 0, "report_to": "none"}
    job = make_job(folder, "sft", **quick, **params)
    result = run(job, Report(job))
    assert result.status == "succeeded" and result.artifact, result.error
    return job.path / result.artifact


def saved(folder: Path) -> dict[str, Any]:
    args: dict[str, Any] = json.loads((folder / "args.json").read_text())
    return args


@pytest.mark.parametrize("kind", SHAPES)
def test_the_shape_of_a_foreign_adapter_is_its_own(tmp_path: Path, kind: str) -> None:
    base = {"model": str(make_model(tmp_path / "m")), "dataset": [str(make_data(tmp_path / "d.jsonl"))]}
    adapter = trained(tmp_path / "theirs", **base, train_type=kind, **SHAPES[kind])
    assert SHAPES[kind].items() <= saved(adapter).items()
    (adapter / "args.json").unlink()
    gone_on = trained(tmp_path / "ours", **base, train_type=kind, adapters=[str(adapter)])
    only = {"resume_from_checkpoint": str(adapter), "resume_only_model": True}
    again = trained(tmp_path / "again", **base, train_type=kind, **only)
    for folder in (gone_on, gone_on.parent, again):
        assert SHAPES[kind].items() <= saved(folder).items()
        assert not TUNERS[kind].reads & set(saved(folder)["given"])
        assert "init_weights" not in saved(folder) or kind != "lora"
