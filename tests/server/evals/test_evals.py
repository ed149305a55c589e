"""/v1/evals, as OpenAI's SDK asks it, on EchoEngine, which says the last message back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from engines.echo import EchoEngine, EchoFaults
from tests.adapter_folders import write_adapter
from tests.server.client import ReadyClient, echo_client
from tests.server.openai_schema import check
from tests.until import until

OVER = {"completed", "failed", "canceled"}
ITEM = {"type": "object", "properties": {"text": {"type": "string"}, "label": {"type": "string"}}, "required": ["text"]}
CUSTOM: Any = {"type": "custom", "item_schema": ITEM, "include_sample_schema": True}
SAME = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.label}}"}
EQUAL: Any = [{**SAME, "operation": "eq"}]
ASK = {"type": "template", "template": [{"role": "user", "content": "{{item.text}}"}]}


class Api:
    """What tests ask of the evals of a server. Whatever it answers is as OpenAI describes it."""

    def __init__(self, http: ReadyClient) -> None:
        self.http = http
        self.client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", http_client=http, max_retries=0)

    def create(self, criteria: Any = EQUAL, config: Any = CUSTOM, **options: Any) -> Any:
        made = self.client.evals.create(data_source_config=config, testing_criteria=criteria, **options)
        check("Eval", made.model_dump(mode="json", by_alias=True, exclude_unset=True))
        return made

    def start(self, of: Any, source: Any, **options: Any) -> Any:
        run = self.client.evals.runs.create(of.id, data_source=source, **options)
        return self.checked(run)

    def ask(self, of: Any, *rows: dict[str, Any], model: str = "echo", kind: str = "completions", **given: Any) -> Any:
        """A run that asks a model about these rows."""
        source = {"type": "file_content", "content": [{"item": row} for row in rows]}
        return self.start(of, {"type": kind, "model": model, "input_messages": ASK, "source": source, **given})

    def wait(self, run: Any) -> Any:
        """The run once it is over."""

        def look() -> Any:
            return self.client.evals.runs.retrieve(run.id, eval_id=run.eval_id)

        return self.checked(until(lambda: now if (now := look()).status in OVER else None, told=look))

    def checked(self, run: Any) -> Any:
        told = run.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if (
            "input_messages" in told["data_source"]
        ):  # of the description a message is two things at once, and must be one
            told["data_source"]["input_messages"] = {"type": "item_reference", "item_reference": "item.input"}
        check("EvalRun", told)
        return run

    def items(self, run: Any, **query: Any) -> list[Any]:
        """Output items in the order of their rows."""
        items = list(self.client.evals.runs.output_items.list(run.id, eval_id=run.eval_id, **query))
        for item in items:
            check("EvalRunOutputItem", item.model_dump(mode="json", exclude_unset=True))
        return sorted(items, key=lambda item: item.datasource_item_id)

    def upload(self, *rows: Any) -> str:
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        return self.client.files.create(file=("rows.jsonl", content), purpose="evals").id


def counts(run: Any) -> tuple[int, int, int, int]:
    told = run.result_counts
    return told.total, told.passed, told.failed, told.errored


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    adapter = write_adapter(tmp_path_factory.mktemp("adapters") / "tuned")
    with echo_client(adapters=[f"tuned={adapter}"], python_graders=True, keep_completions=True) as http:
        yield Api(http)


# ---- from an eval to which model is better


def test_two_models_are_judged_and_the_better_one_is_read_of_the_runs(api: Api) -> None:
    made = api.create(name="who says it", metadata={"for": "a test"})
    rows = [{"text": "a", "label": "a"}, {"text": "b", "label": "b"}, {"text": "c", "label": "x"}]
    runs = {model: api.wait(api.ask(made, *rows, model=model)) for model in ("echo", "tuned")}
    assert {model: run.status for model, run in runs.items()} == {"echo": "completed", "tuned": "completed"}
    assert counts(runs["echo"]) == (3, 2, 1, 0) and counts(runs["tuned"])[1] == 0  # its answers begin with its name
    [criterion] = runs["echo"].per_testing_criteria_results
    assert (criterion.testing_criteria, criterion.passed, criterion.failed) == ("same", 2, 1)
    [usage] = runs["echo"].per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == ("echo", 3)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert max(runs, key=lambda model: runs[model].result_counts.passed) == "echo"


def test_output_items_say_what_was_asked_answered_and_graded(api: Api) -> None:
    params = {"temperature": 0, "max_completion_tokens": 50, "seed": 7, "top_p": 1}
    made = api.create()
    run = api.wait(api.ask(made, {"text": "a", "label": "a"}, {"text": "b", "label": "c"}, sampling_params=params))
    right, wrong = api.items(run)
    assert (right.status, wrong.status) == ("pass", "fail")
    assert right.datasource_item == {"text": "a", "label": "a"}
    [result] = right.results
    assert (result.name, result.type, result.score, result.passed) == ("same", "string_check", 1, True)
    assert [(each.role, each.content) for each in right.sample.input] == [("user", "a")]
    assert [(each.role, each.content) for each in right.sample.output] == [("assistant", "a")]
    assert (right.sample.model, right.sample.finish_reason, right.sample.seed) == ("echo", "stop", 7)
    assert [item.id for item in api.items(run, status="fail")] == [wrong.id]
    one = api.client.evals.runs.output_items.retrieve(right.id, eval_id=made.id, run_id=run.id)
    assert one.model_dump() == right.model_dump()
    paged = list(api.client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=1, order="desc"))
    assert len(paged) == 2 and paged[0].id != paged[1].id


def test_responses_are_asked_as_well(api: Api) -> None:
    run = api.wait(api.ask(api.create(), {"text": "a", "label": "a"}, kind="responses"))
    assert counts(run) == (1, 1, 0, 0)
    assert api.items(run)[0].sample.output[0].content == "a"


# ---- what judges


def test_every_kind_of_grader_judges(api: Api) -> None:
    verdict = {"role": "user", "content": '{"steps": [], "result": {{item.verdict}}}'}
    criteria: Any = [
        *EQUAL,
        {**SAME, "type": "text_similarity", "name": "like", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.9},
        {"type": "python", "name": "code", "source": "def grade(sample, item): return float(item['verdict'])"},
        {"type": "score_model", "name": "score", "model": "echo", "input": [verdict], "range": [0, 4]},
        {
            "type": "score_model",
            "name": "low",
            "model": "echo",
            "input": [verdict],
            "range": [0, 4],
            "pass_threshold": 1,
        },
    ]
    made = api.create(criteria, {**CUSTOM, "item_schema": {"type": "object"}})
    run = api.wait(
        api.ask(made, {"text": "abcd", "label": "abcd", "verdict": 3}, {"text": "b", "label": "a", "verdict": 1})
    )
    good, bad = api.items(run)
    assert [(each.score, each.passed) for each in good.results] == [
        (1, True),
        (1, True),
        (3, True),
        (3, True),
        (3, True),
    ]
    assert [each.passed for each in bad.results] == [False, False, True, False, True]
    [usage] = run.per_model_usage
    assert usage.invocation_count == 4, "two rows, and the question of both score models once for each"
    assert {each.testing_criteria: each.passed for each in run.per_testing_criteria_results} == {
        "same": 1, "like": 1, "code": 2, "score": 1, "low": 2,
    }  # fmt: skip


def test_cosine_compares_the_embeddings_of_the_base_model(api: Api) -> None:
    alike = {**SAME, "type": "text_similarity", "evaluation_metric": "cosine", "pass_threshold": 0.999}
    made = api.create([alike])
    run = api.wait(api.ask(made, {"text": "abcd", "label": "abcd"}, {"text": "abcd", "label": "wxyz"}))
    vectors = [each.embedding for each in api.client.embeddings.create(model="echo", input=["abcd", "wxyz"]).data]
    cosine = sum(one * two for one, two in zip(*vectors, strict=True))
    same, other = api.items(run)
    assert [each.results[0].score for each in (same, other)] == pytest.approx([1, max(0, cosine)], abs=1e-6)
    assert (same.status, other.status) == ("pass", "fail")
    [usage] = run.per_model_usage
    assert usage.invocation_count == 4, "two rows, and the embeddings of the texts of each"


def test_a_model_that_judges_has_what_its_context_leaves(api: Api) -> None:
    length = api.http.get("/v1/models").json()["data"][0]["max_model_len"]
    asked = [
        {"role": "system", "content": "x" * (length - 1500)},
        {"role": "user", "content": '{"steps": [], "result": 1}'},
    ]
    score: Any = {"type": "score_model", "name": "score", "model": "echo", "input": asked}
    limited = {**score, "name": "limited", "sampling_params": {"max_completions_tokens": 2000}}
    [item] = api.items(api.wait(api.ask(api.create([score, limited]), {"text": "a"})))
    found, refused = item.results
    assert (found.score, found.passed) == (1, True)
    assert "maximum context length" in refused.model_extra["error"]["message"]


def test_a_grade_that_fails_is_an_error_of_its_item(api: Api) -> None:
    run = api.wait(api.ask(api.create(), {"text": "a"}, {"text": "a", "label": "a"}))
    assert (run.status, counts(run)) == ("completed", (2, 1, 0, 1))
    lost, found = api.items(run)
    assert (lost.status, found.status) == ("error", "pass")
    assert lost.results[0].model_extra["error"]["code"] == "invalid_variable_error"


def test_an_answer_that_is_refused_is_an_error_of_its_item(api: Api) -> None:
    run = api.wait(api.ask(api.create(), {"text": "x" * 200_000}, {"text": "a", "label": "a"}))
    refused, _ = api.items(run)
    assert (refused.status, refused.results, refused.sample.output) == ("error", [], [])
    assert refused.sample.error.code == "context_length_exceeded"


# ---- where rows come from


def test_rows_come_from_a_file_that_may_be_deleted_meanwhile(api: Api) -> None:
    made = api.create()
    file = api.upload({"item": {"text": "a", "label": "a"}}, {"item": {"text": "b"}, "sample": {"output_text": "c"}})
    source = {"type": "completions", "model": "echo", "input_messages": ASK, "source": {"type": "file_id", "id": file}}
    run = api.start(made, source)
    api.client.files.delete(file)
    assert counts(api.wait(run)) == (2, 1, 0, 1)


def test_answers_that_are_there_are_judged_as_they_are(api: Api) -> None:
    rows = [{"item": {"text": "", "label": "a"}, "sample": {"output_text": said}} for said in ("a", "b")]
    run = api.wait(api.start(api.create(), {"type": "jsonl", "source": {"type": "file_content", "content": rows}}))
    assert (counts(run), run.model, run.per_model_usage) == ((2, 1, 1, 0), "", [])
    assert [item.sample.output[0].content for item in api.items(run)] == ["a", "b"]


def test_kept_chats_are_judged_and_asked_again(api: Api) -> None:
    for said in ("yes", "no"):
        messages: Any = [{"role": "user", "content": said}]
        tags = {"eval": "kept chats", "said": said}
        api.client.chat.completions.create(model="echo", messages=messages, store=True, metadata=tags)
    config = {"type": "logs", "metadata": {"eval": "kept chats"}}
    made = api.create([{**SAME, "operation": "eq", "reference": "yes"}], config)
    stored = {"type": "stored_completions"}
    as_they_are = api.wait(api.start(made, {"type": "completions", "source": stored}))
    assert counts(as_they_are) == (2, 1, 1, 0)
    assert {item.datasource_item["output_text"] for item in api.items(as_they_are)} == {"yes", "no"}
    again = {"type": "item_reference", "item_reference": "item.input"}
    wanted = {**stored, "metadata": {"said": "yes"}}
    asked = {"type": "completions", "model": "tuned", "input_messages": again, "source": wanted}
    run = api.wait(api.start(made, asked))
    assert (counts(run), run.model) == ((1, 0, 1, 0), "tuned")


def test_a_file_of_kept_chats_is_judged_as_they_would_be_themselves(api: Api) -> None:
    for said in ("yes", "no"):
        messages: Any = [{"role": "user", "content": said}]
        api.client.chat.completions.create(
            model="echo", messages=messages, store=True, metadata={"eval": "file", "said": said}
        )
    file = api.http.post("/v1/chat/completions/export", json={"purpose": "evals", "metadata": {"eval": "file"}}).json()
    criteria = [{**SAME, "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.metadata.said}}"}]
    made = api.create(criteria, {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True})
    run = api.wait(api.start(made, {"type": "jsonl", "source": {"type": "file_id", "id": file["id"]}}))
    assert (run.status, counts(run)) == ("completed", (2, 2, 0, 0))
    of_themselves = api.create(criteria, {"type": "logs", "metadata": {"eval": "file"}})
    stored = api.wait(api.start(of_themselves, {"type": "completions", "source": {"type": "stored_completions"}}))
    assert [item.datasource_item for item in api.items(run)] == [item.datasource_item for item in api.items(stored)]
    again = {"type": "item_reference", "item_reference": "item.input"}
    source = {"type": "file_id", "id": file["id"]}
    asked = {"type": "completions", "model": "echo", "input_messages": again, "source": source}
    assert counts(api.wait(api.start(made, asked))) == (2, 2, 0, 0)


def test_kept_responses_are_judged_with_what_came_before(api: Api) -> None:
    first = api.client.responses.create(model="echo", input="first", metadata={"eval": "kept responses"})
    api.client.responses.create(
        model="echo", input="second", previous_response_id=first.id, metadata={"eval": "kept responses"}
    )
    api.client.responses.create(model="echo", input="other")
    criteria = [{**SAME, "operation": "ilike", "input": "{{item.input}}", "reference": "FIRST"}]
    made = api.create(criteria, {"type": "logs", "metadata": {"eval": "kept responses"}})
    run = api.wait(api.start(made, {"type": "responses", "source": {"type": "responses", "model": "echo"}}))
    assert counts(run) == (2, 2, 0, 0)
    again = {"type": "item_reference", "item_reference": "item.input"}
    asked = {
        "type": "responses",
        "model": "tuned",
        "input_messages": again,
        "source": {"type": "responses", "limit": 1},
    }
    [item] = api.items(api.wait(api.start(made, asked)))
    assert item.sample.output[0].content.endswith("second")


# ---- what is refused, and what fails


WRONG_EVALS: list[tuple[dict[str, Any], str]] = [
    ({"data_source_config": {"type": "custom", "item_schema": {"type": "nothing"}}}, "data_source_config.item_schema"),
    (
        {"data_source_config": {"type": "custom", "item_schema": {"$ref": "http://elsewhere/"}}},
        "data_source_config.item_schema",
    ),
    ({"testing_criteria": [{**EQUAL[0], "reference": "{{label}}"}]}, "testing_criteria[0].reference"),
    ({"testing_criteria": [{**SAME, "type": "text_similarity", "evaluation_metric": "bleu"}]}, "testing_criteria[0]"),
    ({"testing_criteria": []}, "testing_criteria"),
]


@pytest.mark.parametrize(("changes", "param"), WRONG_EVALS)
def test_an_eval_that_could_judge_nothing_is_refused(api: Api, changes: dict[str, Any], param: str) -> None:
    body = {"data_source_config": CUSTOM, "testing_criteria": EQUAL} | changes
    reply = api.http.post("/v1/evals", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def source(**changes: Any) -> dict[str, Any]:
    rows = {"type": "file_content", "content": [{"item": {"text": "a"}}]}
    return {"type": "completions", "model": "echo", "input_messages": ASK, "source": rows} | changes


WRONG_RUNS: list[tuple[dict[str, Any], int, str]] = [
    (source(model="unknown"), 404, "data_source.model"),
    (source(model=None), 400, "data_source.model"),
    (source(sampling_params={"temperature": 3}), 400, "data_source.sampling_params.temperature"),
    (source(sampling_params={"stop": "a"}), 400, "data_source.sampling_params.stop"),
    (
        source(input_messages={**ASK, "template": [{"role": "user", "content": "{{sample.output_text}}"}]}),
        400,
        "data_source.input_messages.template[0].content",
    ),
    (source(source={"type": "file_id", "id": "file-unknown"}), 404, "data_source.source.id"),
    (source(source={"type": "file_content", "content": [{"item": {"text": 1}}]}), 400, "data_source.source.content"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "status", "param"), WRONG_RUNS)
def test_a_run_that_could_ask_nothing_is_refused(api: Api, given: dict[str, Any], status: int, param: str) -> None:
    made = api.create()
    reply = api.http.post(f"/v1/evals/{made.id}/runs", json={"data_source": given})
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text


def deep(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


def test_a_file_whose_rows_are_wrong_fails_the_run_and_names_the_line(api: Api) -> None:
    for rows, told in (
        (({"item": {"text": "a"}}, {"item": {}}), "line 2: item: 'text' is a required property"),
        (({"text": "a"},), "line 1"),
        (({"item": {"text": "a", "more": deep(300)}},), "line 1: The body is nested deeper than 100 levels"),
    ):
        data = {"type": "file_id", "id": api.upload(*rows)}
        run = api.wait(api.start(api.create(), {"type": "jsonl", "source": data}))
        assert (run.status, run.error.code) == ("failed", "invalid_data") and told in run.error.message


def test_rows_that_an_editor_began_with_a_byte_order_mark_are_read(api: Api) -> None:
    content = b"\xef\xbb\xbf" + json.dumps({"item": {"text": "a", "label": "a"}}).encode()
    id = api.client.files.create(file=("rows.jsonl", content), purpose="evals").id
    run = api.wait(api.start(api.create(config=CUSTOM), {"type": "jsonl", "source": {"type": "file_id", "id": id}}))
    assert (run.status, counts(run)[0]) == ("completed", 1)


# ---- changed, listed, deleted


def test_evals_and_runs_are_listed_changed_and_deleted(api: Api) -> None:
    evals = api.client.evals
    first, second = api.create(name="first"), api.create(name="second")
    changed = evals.update(first.id, name="renamed", metadata={"a": "b"})
    assert (changed.name, changed.metadata) == ("renamed", {"a": "b"})
    mine = [each.id for each in evals.list(limit=1, order="desc") if each.id in (first.id, second.id)]
    assert mine == [second.id, first.id]
    page = evals.list(order_by="updated_at", order="desc", limit=100)
    check("EvalList", json.loads(page.model_dump_json(by_alias=True, exclude_unset=True)))
    runs = [api.wait(api.ask(first, {"text": "a", "label": "a"})) for _ in range(2)]
    assert [run.id for run in evals.runs.list(first.id)] == [run.id for run in runs]
    assert list(evals.runs.list(first.id, status="failed")) == []
    gone = evals.runs.delete(runs[0].id, eval_id=first.id)
    assert (gone.object, gone.deleted, gone.run_id) == ("eval.run.deleted", True, runs[0].id)
    assert evals.delete(first.id).deleted
    for ask in (lambda: evals.retrieve(first.id), lambda: evals.runs.retrieve(runs[1].id, eval_id=first.id)):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.NotFoundError):
        evals.runs.list(second.id, after=runs[1].id)


def test_a_run_is_canceled_and_its_rows_are_removed(tmp_path: Path) -> None:
    engine = EchoEngine(faults=EchoFaults(token_delay=60))
    with echo_client(engine, state_dir=str(tmp_path)) as http:
        api = Api(http)
        run = api.ask(api.create(), {"text": "a", "label": "a"})
        until(lambda: api.client.evals.runs.retrieve(run.id, eval_id=run.eval_id).status == "in_progress")
        assert len(list((tmp_path / "evals").glob("*/*"))) == 1
        canceled = api.checked(api.client.evals.runs.cancel(run.id, eval_id=run.eval_id))
        assert (canceled.status, counts(canceled)) == ("canceled", (0, 0, 0, 0))
        until(lambda: not list((tmp_path / "evals").glob("*/*")))
        done = api.http.post(f"/v1/evals/{run.eval_id}/runs/{run.id}")
        assert done.status_code == 200, "canceled twice is canceled"


def test_a_run_goes_on_with_the_next_server(tmp_path: Path, database_url: str) -> None:
    store: Any = {"state_dir": str(tmp_path), "database_url": database_url}
    slow = EchoEngine(faults=EchoFaults(token_delay=60))
    with echo_client(slow, **store) as http:
        run = Api(http).ask(Api(http).create(), {"text": "a", "label": "a"}, {"text": "b", "label": "b"})
        until(lambda: Api(http).client.evals.runs.retrieve(run.id, eval_id=run.eval_id).status == "in_progress")
    with echo_client(**store) as http:
        assert counts(Api(http).wait(run)) == (2, 2, 0, 0)
        assert [item.datasource_item_id for item in Api(http).items(run)] == [0, 1]
