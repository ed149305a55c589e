"""`infer` and `eval` on every engine: the answers and the scores that ours has, of a model and of an adapter."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from engines.setup.install import NotInstalled, require_vllm
from engines.vllm import client
from engines.vllm.client import environment
from tests import harness
from tests.engines.lmdeploy.engines import python_on_cpu
from tests.engines.pt.tiny import byte_level_tokenizer
from tests.engines.vllm.tiny import FORKS, save_for_vllm
from tests.training.evaluation.test_eval import taught
from tests.training.jobs import TEMPLATE, make_job
from training.folder import Result
from training.report import Report

ROWS: list[dict[str, Any]] = [
    *({"query": f"value {n}", "response": "one"} for n in range(5)),
    {"prompt": "the numbers and the", "completion": " name"},
    {"query": "x" * 4000, "response": "y"},
]
CHOICES = [{"query": f"the {word} is", "choices": ["red", "blue one", "name"], "answer": 1} for word in ("one", "two")]
WRITTEN = [{"query": f"value {n}", "answer": "one"} for n in range(3)]
SETTINGS: dict[str, dict[str, Any]] = {
    "pt": {"threads": 1},
    "vllm": {"threads": 1, "enforce_eager": True, "kv_cache_memory": 0.05, "vllm_max_lora_rank": 8},
    "lmdeploy": {"enforce_eager": True, "max_lora_rank": 8},
}
SHOWN = 4
"""Significant digits of scores that have to be the same: sums in float32 are made in another order."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bulk")
    save_for_vllm(folder / "model", positions=512)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    taught(folder / "adapter", folder / "model")
    for name, rows in (("rows", ROWS), ("choices", CHOICES), ("written", WRITTEN)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with harness.importable():
        yield folder


def run(place: Path, engine: str, task: str, **params: Any) -> tuple[Result, Path]:
    """An inference or an evaluation of the adapter."""
    given: dict[str, Any] = {
        "model": str(place / "model"),
        "adapters": [str(place / "adapter")],
        "torch_dtype": "float32",
    }
    given |= {"infer_backend": engine, "max_num_seqs": 4, **SETTINGS[engine], **params}
    job = make_job(place / f"{task}-{engine}", task, **given)
    asked = job.read_task()
    result = import_module(asked.pipeline).run(asked.params, Report(job))
    assert result.status == "succeeded" and result.artifact
    return result, job.path / result.artifact


def answered(place: Path, engine: str) -> list[dict[str, Any]]:
    rows = [str(place / "rows.jsonl")]
    _, file = run(place, engine, "infer", val_dataset=rows, max_new_tokens=8, temperature=0, logprobs=True)
    return [json.loads(line) for line in file.read_text().splitlines()]


def measured(place: Path, engine: str) -> dict[str, str]:
    files = [str(place / f"{name}.jsonl") for name in ("choices", "written")]
    result, folder = run(place, engine, "eval", eval_dataset=files)
    samples = [json.loads(line) for line in (folder / "samples_choices.jsonl").read_text().splitlines()]
    likely = [float(choice[0][0]) for sample in samples for choice in sample["resps"]]
    return {name: f"{value:.{SHOWN}g}" for name, value in [*result.metrics.items(), ("likelihoods", sum(likely))]}


@pytest.fixture(scope="module")
def ours(place: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    return answered(place, "pt"), measured(place, "pt")


@pytest.fixture(params=["vllm", "lmdeploy"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    try:
        if request.param == "vllm":
            require_vllm()
            monkeypatch.setattr(client, "environment", lambda config: environment(config) | FORKS)
        else:
            monkeypatch.setenv("TUNESERVE_LMDEPLOY_PYTHON", str(python_on_cpu(tmp_path)))
    except NotInstalled as error:
        pytest.skip(error.message)
    return str(request.param)


def test_a_data_set_is_answered_and_a_model_measured_as_by_our_engine(
    engine: str, place: Path, ours: tuple[list[dict[str, Any]], dict[str, str]]
) -> None:
    lines, scores = ours
    theirs = answered(place, engine)
    for name in ("index", "row", "labels", "response", "finish_reason"):
        assert [line.get(name) for line in theirs] == [line.get(name) for line in lines], name
    assert [line["error"]["code"] for line in theirs if "error" in line] == ["context_length_exceeded"]
    assert measured(place, engine) == scores
