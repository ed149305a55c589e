"""However data gets to the trainer, it trains."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.jobs import evaluations, losses, make_job
from training.params.sft import PtParams, SftParams
from training.pipelines import train as pipeline
from training.report import Report

QUICK: dict[str, Any] = {
    "torch_dtype": "float32", "per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "steps", "eval_steps": 2, "report_to": "none", "split_dataset_ratio": 0.0,
}  # fmt: skip


@pytest.fixture
def train(tmp_path: Path, tiny: Path, lines: Path) -> Callable[..., dict[int, float]]:
    def run(**params: Any) -> dict[int, float]:
        given = {"model": str(tiny), "dataset": str(lines), "val_dataset": f"{lines}#3", **QUICK, **params}
        job = make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", "sft", **given)
        kind = PtParams if "use_chat_template" in params else SftParams
        pipeline.run(kind.model_validate(given), Report(job))
        assert list(evaluations(job)) == [2]
        return losses(job)

    return run


def test_encoded_beforehand_or_when_needed_is_the_same(train: Callable[..., dict[int, float]]) -> None:
    assert train() == train(lazy_tokenize=True) == train(lazy_tokenize=True, dataloader_num_workers=2)


@pytest.mark.parametrize(
    "params",
    [
        {"streaming": True},
        {"streaming": True, "dataloader_num_workers": 2},
        {"streaming": True, "packing": True, "max_length": 64},
        {"packing": True, "max_length": 64, "dataset_num_proc": 2},
        {"use_chat_template": True, "packing": True, "max_length": 64},
    ],
    ids=str,
)
def test_streams_and_packed_rows_are_learned(train: Callable[..., dict[int, float]], params: dict[str, Any]) -> None:
    assert all(map(math.isfinite, train(**params).values()))
