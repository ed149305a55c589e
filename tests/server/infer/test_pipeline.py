"""A data set answered: every row once, as the endpoint answers it, wherever a run before this one ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest, TuneserveError
from server.infer.group import Group
from tests.adapter_folders import write_adapter
from tests.server.client import echo_client
from tests.server.infer.conftest import Answered, Listening
from training.folder import Evaluation, Started

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]},
    {"query": "two", "response": "two"},
    {"messages": [{"role": "user", "content": "three"}, {"role": "assistant", "content": "no", "weight": 1}], "id": 7},
    {"messages": [{"role": "user", "content": "four"}], "tools": [TOOL]},
    {"prompt": "five", "completion": "five"},
]


def many(count: int) -> list[dict[str, Any]]:
    return [{"query": f"question {i}", "response": f"question {i % 2}"} for i in range(count)]


def test_each_row_is_answered_beside_what_the_data_says(answered: Answered) -> None:
    result, lines, folder = answered(ROWS)
    assert (result.status, result.kind, result.artifact, result.final_step) == (
        "succeeded",
        "answers",
        "answers.jsonl",
        5,
    )
    assert [line["row"] for line in lines] == ROWS
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["response"] for line in lines] == ["one", "two", "three", "four", "five"]
    assert [line["labels"] for line in lines] == [None, "two", "no", None, "five"]
    assert {line["finish_reason"] for line in lines} == {"stop"} and "logprobs" not in lines[0]
    assert [event.rows for event, _ in folder.read_events() if isinstance(event, Started)] == [5]


def test_answers_are_the_endpoints(answered: Answered) -> None:
    _, lines, _ = answered(ROWS, logprobs=True, temperature=0.7, system="be brief", max_new_tokens=4)
    told: dict[str, Any] = {"temperature": 0.7, "system": "be brief", "max_new_tokens": 4}
    with echo_client(**told) as client:
        for line, row in zip(lines, ROWS, strict=True):
            body = {"model": "echo", "seed": 42 + line["index"]}
            if "prompt" in row:
                whole = client.post("/v1/completions", json=body | {"prompt": row["prompt"], "logprobs": 0}).json()
                text = whole["choices"][0]["text"]
            else:
                asked = [
                    m for m in row.get("messages", [{"role": "user", "content": "two"}]) if m["role"] != "assistant"
                ]
                body |= {"messages": asked, "logprobs": True} | {k: row[k] for k in ("tools",) if k in row}
                whole = client.post("/v1/chat/completions", json=body).json()
                text = whole["choices"][0]["message"]["content"]
            assert line["response"] == text
            assert line["logprobs"] == whole["choices"][0]["logprobs"]
            assert line["finish_reason"] == whole["choices"][0]["finish_reason"]
            assert line["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("left", [b"", b'{"ind', b'{"index":9,"row":{"query":"question 9"},"respon'])
def test_a_run_goes_on_where_one_before_it_was_killed(
    left: bytes, answered: Answered, engine: Listening, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    _, whole, _ = answered(many(10), result_path=str(path))
    kept = [json.dumps(whole[i], separators=(",", ":")).encode() + b"\n" for i in (8, 3, 0)]
    path.write_bytes(b"".join(kept) + left)
    engine.requests.clear()
    _, lines, _ = answered(many(10), result_path=str(path))
    assert lines == whole and len(engine.requests) == 7


def test_processes_share_the_rows(answered: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "answers.jsonl")
    lines: list[dict[str, Any]] = []
    for rank, mine in ((1, [1, 3]), (0, [0, 1, 2, 3, 4])):  # the first one puts them in order
        monkeypatch.setattr(Group, "of_environment", lambda params, rank=rank: Group(rank, 2))
        _, lines, _ = answered(ROWS, result_path=path)
        assert [line["index"] for line in lines] == mine
    assert [line["response"] for line in lines] == ["one", "two", "three", "four", "five"]


def test_what_is_answered_already_needs_no_engine(answered: Answered, engine: Listening, tmp_path: Path) -> None:
    given = {"result_path": str(tmp_path / "answers.jsonl"), "metric": ["accuracy"]}
    first, *_ = answered(many(4), **given)
    engine.requests.clear()
    again, *_ = answered(many(4), **given)
    assert again.metrics == first.metrics == {"accuracy": 0.5} and engine.requests == []


def test_a_row_that_is_refused_has_the_error_in_place_of_an_answer(answered: Answered) -> None:
    rows = [{"query": "x" * 100_000, "response": "y"}, {"query": "short", "response": "short"}]
    result, lines, folder = answered(rows, metric=["accuracy"])
    assert lines[0]["response"] is None and lines[0]["error"]["code"] == "context_length_exceeded"
    assert lines[0]["error"]["status"] == 400 and lines[1]["response"] == "short"
    assert result.metrics == {"accuracy": 1.0}
    told = [event.message for event, _ in folder.read_events() if event.type == "message"]
    assert "1 of 2 rows were refused; their lines say why." in told


def test_answers_are_measured(answered: Answered) -> None:
    result, _, folder = answered(many(4), metric=["accuracy", "rouge", "bleu"])
    assert result.metrics["accuracy"] == 0.5 and set(result.metrics) >= {"rouge-1", "rouge-2", "rouge-l", "bleu-4"}
    assert 50 < result.metrics["rouge-l"] < 100
    assert [event.metrics for event, _ in folder.read_events() if isinstance(event, Evaluation)] == [result.metrics]


def test_a_metric_of_ones_own_measures(answered: Answered, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from training.plugins import metric\n@metric('mine')\ndef mine(answers, labels):\n    return len(answers)\n"
    )
    result, *_ = answered(many(3), metric=["mine"], custom_register_path=[str(file)])
    assert result.metrics == {"mine": 3.0}
    with pytest.raises(InvalidRequest, match="no metric 'yours'"):
        answered(many(3), metric=["yours"], custom_register_path=[str(file)])


def test_a_sample_is_the_same_each_time(answered: Answered) -> None:
    once, again, other = (
        [line["row"]["query"] for line in answered(many(20), val_dataset_sample=5, data_seed=seed)[1]]
        for seed in (1, 1, 2)
    )
    assert once == again != other and len(set(once)) == 5 == len(other)


@pytest.mark.parametrize(("given", "count"), [({}, 20), ({"split_dataset_ratio": 0.25}, 5)])
def test_of_training_data_all_is_answered_or_what_a_training_sets_aside(
    given: dict[str, Any], count: int, answered: Answered, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in many(20)))
    _, lines, _ = answered(many(1), val_dataset=[], dataset=[str(data)], **given)
    assert len(lines) == count and len({line["row"]["query"] for line in lines}) == count


def test_a_row_that_cannot_be_used_is_left_out_or_ends_it_all(answered: Answered) -> None:
    rows = [{"query": "one"}, {"nothing": "known"}, {"query": "two"}]
    _, lines, folder = answered(rows)
    assert [line["response"] for line in lines] == ["one", "two"]
    told = [event.message for event, _ in folder.read_events() if event.type == "message"]
    assert "1 rows of " in told[0] and "line 2 of rows.jsonl" in told[0].lower()
    with pytest.raises(TuneserveError, match=r"Line 2 of rows\.jsonl"):
        answered(rows, strict=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An adapter whose training said its model, its system message and its data."""
    data = tmp_path / "learned.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in many(100)))
    folder = write_adapter(tmp_path / "checkpoint-3")
    said = {"model": "echo", "system": "as taught", "dataset": [str(data)], "learning_rate": 0.1}
    (folder / "args.json").write_text(json.dumps(said | {"given": [*said]}))
    return folder


@pytest.mark.parametrize(("load_args", "system"), [(True, b"as taught"), (False, b"")])
def test_a_checkpoint_answers_as_it_was_trained(
    load_args: bool, system: bytes, answered: Answered, engine: Listening, checkpoint: Path
) -> None:
    model = None if load_args else "echo"
    answered([{"query": "one"}], model=model, adapters=[str(checkpoint)], load_args=load_args)
    (request,) = engine.requests
    prompt = bytes(token for token in request.prompt_ids if token < 256)
    assert request.adapter is not None and (system in prompt) and (b"as taught" in prompt) == load_args


def test_of_a_checkpoints_own_data_what_it_had_set_aside_is_answered(answered: Answered, checkpoint: Path) -> None:
    given = {"model": None, "val_dataset": [], "adapters": [str(checkpoint)], "load_data_args": True}
    assert len(answered([], **given)[1]) == 1
    assert len(answered([], **given, val_dataset_sample=1, split_dataset_ratio=0.5)[1]) == 1
    assert len(answered([], **given, split_dataset_ratio=0.5)[1]) == 50


def test_adapters_that_name_no_model_need_one(answered: Answered, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "bare")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(InvalidRequest, match=r"neither the adapters nor an args\.json beside them"):
        answered([{"query": "one"}], model=None, adapters=[str(adapter)])


def test_a_run_that_is_told_to_stop_keeps_what_is_answered(
    answered: Answered, engine: Listening, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    engine.stop_at = 6
    result, lines, _ = answered(many(10), result_path=str(path), max_num_seqs=1, max_num_queued_reqs=0)
    assert result.status == "stopped" and result.final_step == len(lines) < 10
    engine.stop_at = 0
    _, lines, _ = answered(many(10), result_path=str(path))
    assert [line["index"] for line in lines] == list(range(10))


def test_an_engine_that_cannot_start_says_so(answered: Answered, engine: Listening) -> None:
    engine.faults.start_error = TuneserveError("no such model")
    with pytest.raises(TuneserveError, match="no such model"):
        answered(many(2))
