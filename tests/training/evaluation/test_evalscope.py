"""EvalScope as a backend: its scores, in our shape, as EvalScope itself finds them over the same server."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest
from engines.setup.install import NotInstalled, require_evalscope
from tests.training.jobs import make_model
from training.evaluation.evalscope.benchmarks import read_benchmarks
from training.evaluation.evalscope.found import in_short
from training.evaluation.results import read
from training.evaluation.served import Served, served
from training.folder import JobFolder, Message
from training.params.eval import EvalParams
from training.pipelines import eval as pipeline
from training.report import Report

CHOICES: list[dict[str, Any]] = [
    {"query": f"the {word} is", "choices": ["red", "blue", "name"], "answer": n % 3} for n, word in enumerate("abcde")
]
WRITTEN: list[dict[str, Any]] = [{"query": f"value {n}", "response": "one two", "system": "be brief"} for n in range(4)]
BY_ITSELF = """
import json, sys
from evalscope import TaskConfig, run_task
kind, folder, subset, url, key, model, out = sys.argv[1:]
run_task(TaskConfig(
    model=model, api_url=url, api_key=key, eval_type="openai_api", datasets=[kind], limit=3,
    dataset_args={kind: {"local_path": folder, "subset_list": [subset]}},
    generation_config={"temperature": 0, "max_tokens": 8}, work_dir=out, no_timestamp=True,
))
"""


@pytest.fixture
def python() -> Path:
    try:
        return require_evalscope()
    except NotInstalled as error:
        pytest.skip(error.message)


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(file)


def by_itself(python: Path, kind: str, file: Path, subset: str, server: Served, out: Path) -> "subprocess.Popen[bytes]":
    told = [kind, str(file.parent), subset, server.url, server.key or "", server.model, str(out)]
    return subprocess.Popen([python, "-I", "-c", BY_ITSELF, *told], stdout=subprocess.DEVNULL)


def test_scores_are_those_that_evalscope_finds_by_itself(python: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    own = [
        {"question": row["query"], **dict(zip("ABC", row["choices"], strict=True)), "answer": "ABC"[row["answer"]]}
        for row in CHOICES
    ]
    files = [write(tmp_path / "choices.jsonl", CHOICES), write(tmp_path / "written.jsonl", WRITTEN)]
    write(tmp_path / "own" / "choices_val.jsonl", own)
    folder = JobFolder(tmp_path / "job")
    folder.path.mkdir()
    settings = {"model": str(model), "torch_dtype": "float32", "threads": 1}
    with served(EvalParams(**settings), lambda: None) as server:
        others = [
            by_itself(python, "general_mcq", tmp_path / "own" / "x", "choices", server, tmp_path / "mcq"),
            by_itself(python, "general_qa", tmp_path / "x", "written", server, tmp_path / "qa"),
        ]
        asked = {"eval_url": server.url, "eval_api_key": server.key, "model": server.model, "eval_limit": 3}
        params = EvalParams(eval_backend="evalscope", eval_dataset=files, max_new_tokens=8, **asked)
        result = pipeline.run(params, Report(folder))
        assert [other.wait() for other in others] == [0, 0]
    found = read(folder.path / "evaluation")
    for name, kind, out in (("choices", "general_mcq", "mcq"), ("written", "general_qa", "qa")):
        report = json.loads(next((tmp_path / out).glob(f"reports/*/{kind}.json")).read_text())
        scores = [round(score.value, 4) for score in found.scores if score.task == name]
        theirs = [metric["score"] for metric in report["metrics"]]
        assert scores == theirs[-len(scores) :] and len(found.samples[name]) == 3
        assert {score.questions for score in found.scores if score.task == name} == {3}
    # What cannot be measured here is told, and is no score of 0.
    told = [event.message for event, _ in folder.read_events() if isinstance(event, Message)]
    lost = [text for text in told if "EvalScope could not measure BLEU" in text]
    assert bool(lost) != ("written/bleu-1" in result.metrics)
    assert {"choices/accuracy", "choices/accuracy_stderr", "written/Rouge-L-R"} <= result.metrics.keys()


def test_rows_become_data_as_evalscope_has_it(tmp_path: Path) -> None:
    own = [{"question": "q", "A": "a", "B": "b", "answer": "B"}]
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in (("a", CHOICES), ("b", own), ("c", WRITTEN))]
    first, second, third, named = read_benchmarks([files[0] + "#2", *files[1:], "gsm8k"])
    assert first.kind == second.kind == "general_mcq" and third.kind == "general_qa"
    assert first.rows == [
        {"question": f"the {word} is", "A": "red", "B": "blue", "C": "name", "answer": letter}
        for word, letter in ("aA", "bB")
    ]
    assert (second.rows, third.rows) == (own, WRITTEN)
    assert (named.name, named.kind, named.arguments(tmp_path / "none")) == ("gsm8k", "gsm8k", {})


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (
            "LookupError: \n***\n  Resource 'punkt' not found.\n  See\n",
            "LookupError: Resource 'punkt' not found.",
        ),
        ("ImportError: no module named x\nsee there", "ImportError: no module named x"),
        ("KeyError: 'a'", "KeyError: 'a'"),
    ],
)
def test_why_it_could_not_measure_is_told_in_one_line(why: str, told: str) -> None:
    assert in_short(why) == told


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "perplexity is the harness's"}, "row 1: EvalScope takes rows with"),
        ({"query": "q", "choices": ["a"], "answer": 1}, "row 1: 'answer' is the place"),
        ({"query": "q", "choices": [*"abcdefghijk"], "answer": 1}, "10 choices at most"),
        ({"question": "q", "A": "a", "answer": "B"}, "the letter of one as 'answer'"),
        ({"query": "q", "answer": 7}, "row 1: EvalScope takes rows with"),
    ],
)
def test_rows_that_it_cannot_judge_are_refused(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read_benchmarks([write(tmp_path / "rows.jsonl", [row])])


def test_what_belongs_to_the_harness_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "require_evalscope", lambda: tmp_path)
    file = write(tmp_path / "rows.jsonl", WRITTEN)
    report = Report(JobFolder(tmp_path))
    for changes, told in (
        ({"eval_dataset": ["own.yaml"]}, "tasks in YAML are the harness's"),
        ({"eval_dataset": [file], "eval_few_shot": 2}, "shows no examples"),
        ({"eval_dataset": [file, file]}, "two benchmarks are called 'rows'"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            pipeline.run(EvalParams(model="m", eval_backend="evalscope", **changes), report)
    report.discreet = True
    with pytest.raises(InvalidRequest, match="name a file of rows, not 'gsm8k'"):
        pipeline.run(EvalParams(model="m", eval_backend="evalscope", eval_dataset=("gsm8k",)), report)
