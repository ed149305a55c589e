"""The pipeline `eval` on a tiny model: scores as lm-evaluation-harness has them with transformers, to the digit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest
from tests import harness
from tests.server.process import ServerProcess
from tests.training.jobs import make_model
from tests.until import until
from training.evaluation.harness import find_tasks
from training.evaluation.tasks import read_tasks
from training.folder import JobFolder, Message, Result
from training.params.eval import EvalParams
from training.params.task import TASK
from training.pipelines import eval as pipeline
from training.refusals.supported import refusals
from training.report import Report

ROWS: dict[str, list[dict[str, Any]]] = {
    "choices": [
        {"query": f"the {word} is", "choices": ["red", "blue one", "name"], "answer": n % 3}
        for n, word in enumerate(["one", "two", "three", "four", "five", "name"])
    ],
    "written": [{"query": f"value {n}", "answer": "one"} for n in range(3)],
    "texts": [{"text": "red and blue"}, {"text": "the numbers and the name of the value"}, {"text": "one two"}],
}
SHOWN = 5
"""Significant digits that have to be the same: sums in float32 are made in another order."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("eval")
    make_model(folder / "model")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with harness.importable():
        yield folder


def run(place: Path, name: str, **params: Any) -> tuple[Result, JobFolder]:
    folder = JobFolder(place / name)
    folder.path.mkdir()
    given = {
        "model": str(place / "model"), "torch_dtype": "float32", "max_model_len": 128,
        "eval_dataset": [str(place / f"{rows}.jsonl") for rows in ROWS], **params,
    }  # fmt: skip
    return pipeline.run(EvalParams(**given), Report(folder)), folder


def by_transformers(place: Path, **options: Any) -> dict[str, float]:
    """What the harness's own model class finds."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    _, files = read_tasks([str(place / f"{rows}.jsonl") for rows in ROWS], allow_code=True)
    model = HFLM(pretrained=str(place / "model"), dtype="float32", device="cpu", batch_size=4, max_length=128)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 42)
    tasks: Any = [file.config for file in files]
    manager = TaskManager(include_defaults=False)
    found: Any = simple_evaluate(model=model, tasks=tasks, task_manager=manager, **seeds, **options)
    return {
        f"{task}/{key.removesuffix(',none')}": value
        for task, scores in found["results"].items()
        for key, value in scores.items()
        if isinstance(value, float) and key.endswith(",none")
    }


def test_scores_are_those_of_the_harness_with_transformers(place: Path) -> None:
    result, _ = run(place, "few", eval_few_shot=1)
    expected = by_transformers(place, num_fewshot=1)
    told = {name: value for name, value in result.metrics.items() if name in expected}
    assert told.keys() >= {"choices/acc", "choices/acc_stderr", "written/exact_match", "texts/word_perplexity"}
    for name, value in told.items():
        assert f"{value:.{SHOWN}g}" == f"{expected[name]:.{SHOWN}g}", name


def test_for_rows_of_a_file_no_task_of_the_harness_is_read(place: Path) -> None:
    _, files = read_tasks([str(place / f"{rows}.jsonl") for rows in ROWS], allow_code=False)
    assert find_tasks([], files).all_tasks == []


@pytest.fixture(scope="module")
def base(place: Path) -> tuple[Result, JobFolder]:
    return run(place, "base", eval_limit=4)


def test_what_was_found_is_in_files_messages_and_the_result(base: tuple[Result, JobFolder]) -> None:
    result, folder = base
    assert (result.status, result.kind, result.artifact) == ("succeeded", "scores", "evaluation")
    assert {file.name for file in (folder.path / "evaluation").iterdir()} == {
        "results.json", "table.md", "plot.svg", *(f"samples_{name}.jsonl" for name in ROWS),
    }  # fmt: skip
    samples = (folder.path / "evaluation" / "samples_choices.jsonl").read_text().splitlines()
    assert len(samples) == 4
    said = [event.message for event, _ in folder.read_events() if isinstance(event, Message)]
    assert said[0] == "Loading model." and "| choices" in said[-1]


@pytest.mark.parametrize("how", ["earlier", "base"])
def test_an_adapter_is_measured_and_compared_with_its_model(
    how: str, place: Path, base: tuple[Result, JobFolder]
) -> None:
    adapter, earlier = place / "adapter", base[1].path / "evaluation"
    if not adapter.exists():
        taught(adapter, place / "model")
    other = str(earlier) if how == "earlier" else "base"
    result, folder = run(place, f"tuned-{how}", adapters=[str(adapter)], eval_limit=4, compare=other)
    told = json.loads((folder.path / "evaluation" / "results.json").read_text())
    beside = folder.path / "evaluation" / "compared"
    assert beside.exists() == (how == "base")
    if how == "base":  # as an evaluation of its own has it
        for name in ("results.json", "samples_choices.jsonl", "samples_texts.jsonl"):
            assert (beside / name).read_text() == (earlier / name).read_text(), name
    assert result.metrics["choices/acc_compared"] == base[0].metrics["choices/acc"]
    assert 0 <= result.metrics["texts/word_perplexity_p"] <= 1
    found = {(each["task"], each["metric"]): each for each in told["differences"]}
    assert found["choices", "acc"]["test"] == "McNemar"
    text = found["texts", "word_perplexity"]
    assert (text["test"], text["value"] == text["other"]) == ("paired bootstrap", False)
    assert result.metrics["choices/acc"] == found["choices", "acc"]["value"]


def test_what_is_nothing_to_compare_with_is_refused_before_a_model_is_measured(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.pipelines.eval.measure", None)
    (place / "empty").mkdir()
    for name, said in (("empty", "neither an evaluation nor an adapter nor a model"), ("missing", "there is no")):
        with pytest.raises(InvalidRequest, match=said) as refused:
            run(place, f"beside-{name}", compare=str(place / name))
        assert refused.value.param == "compare"


def taught(folder: Path, model: Path) -> Path:
    """A LoRA adapter that changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def test_a_server_is_measured(place: Path) -> None:
    server = ServerProcess.echo(params={"verbose": False, "state_dir": str(place / "state")})
    try:
        url = f"{server.wait_until_listening()}/v1"
        until(server.is_ready)
        of_server = {"model": None, "torch_dtype": None, "eval_url": url}
        rows = [str(place / f"{name}.jsonl") for name in ("choices", "written")]
        result, _ = run(place, "server", **of_server, eval_dataset=rows, max_model_len=None)
        assert result.metrics.keys() >= {"choices/acc", "written/exact_match"}
        with pytest.raises(InvalidRequest, match="serves no 'other', but echo"):
            run(place, "unknown", **of_server | {"model": "other"}, eval_dataset=rows, max_model_len=None)
    finally:
        server.close()


def test_a_job_of_the_api_runs_no_code(place: Path) -> None:
    (place / "own.yaml").write_text("task: own\n")
    for dataset, told in ((str(place / "own.yaml"), "may run code"), ("arc_easy", "name a file of rows")):
        folder = JobFolder(place / Path(dataset).stem)
        folder.path.mkdir()
        report = Report(folder)
        report.discreet = True
        with pytest.raises(InvalidRequest, match=told):
            pipeline.run(EvalParams(model=str(place / "model"), eval_dataset=(dataset,)), report)


def test_a_benchmark_whose_data_cannot_be_had_is_refused_before_the_model_is_loaded(place: Path) -> None:
    asked = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(place / "gone.jsonl")}, "test_split": "train"}
    told = {"task": "gone", "output_type": "generate_until", "doc_to_text": "x", "doc_to_target": "y", **asked}
    (place / "gone.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items()))
    with pytest.raises(InvalidRequest, match=r"'gone' cannot be had: FileNotFoundError.*gone\.jsonl") as error:
        run(place, "gone", model=str(place / "no-model"), eval_dataset=[str(place / "gone.yaml")])
    assert error.value.param == "eval_dataset"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"eval_dataset": []}, "eval_dataset"),
    ({"model": None}, "model"),
    ({"compare": "base"}, "compare"),
    ({"max_new_tokens": 3}, "max_new_tokens"),
    ({"verbose": True}, "verbose"),
    ({"eval_url": "http://localhost/v1", "eval_backend": "evalscope", "verbose": True}, "verbose"),
    ({"eval_url": "http://localhost/v1", "infer_backend": "vllm"}, "infer_backend"),
    ({"eval_url": "http://localhost/v1", "max_num_seqs": 3}, "max_num_seqs"),
    ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
    ({"max_num_seqs": 3, "max_batch_size": 3}, "max_batch_size"),
    ({"max_num_queued_reqs": 3}, "max_num_queued_reqs"),
    ({"eval_url": "http://localhost/v1", "adapters": ["a"]}, "adapters"),
    ({"eval_api_key": "x"}, "eval_api_key"),
    ({"port": 9}, "port"),
]


@pytest.mark.parametrize(("given", "name"), REFUSED)
def test_what_has_no_effect_is_refused(given: dict[str, Any], name: str) -> None:
    params = {"model": "m", "eval_dataset": ["a.jsonl"], **given}
    task = TASK.validate_python({"task": "eval", "params": params})
    assert [param for param, _ in refusals(task)] == [name]
