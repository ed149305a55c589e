"""/v1/fine_tuning/alpha/graders, as OpenAI's SDK and others ask it."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from engines.echo import EchoEngine, EchoFaults
from server.pools import Pools
from tests.server.client import ReadyClient, Response, echo_client
from tests.server.keys import FULL, bearer
from tests.server.openai_schema import check
from tests.until import until

PATH = "/v1/fine_tuning/alpha/graders"
CHECK = {
    "type": "string_check",
    "name": "check",
    "input": "{{sample.output_text}}",
    "reference": "{{item.label}}",
    "operation": "eq",
}
PYTHON = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return item['score']"}
# EchoEngine says the last message back, as far as the format of the answer allows
SAYS = {"role": "user", "content": '{"steps": [], "result": {{item.result}}}'}
JUDGE = {"type": "score_model", "name": "judge", "model": "echo", "input": [SAYS], "range": [0, 2]}
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def http() -> Iterator[ReadyClient]:
    with echo_client(python_graders=True) as client:
        yield client


def post(http: ReadyClient, grader: Any, sample: str = "a", **sent: Any) -> Response:
    return http.post(f"{PATH}/run", json={"grader": grader, "model_sample": sample, **sent})


def run(http: ReadyClient, grader: Any, sample: str = "a", **sent: Any) -> dict[str, Any]:
    answer = post(http, grader, sample, **sent)
    assert answer.status_code == 200, answer.text
    graded: dict[str, Any] = answer.json()
    check("RunGraderResponse", graded)
    return graded


def errors(graded: dict[str, Any]) -> dict[str, str]:
    """The kinds of errors that happened, with their details."""
    told = graded["metadata"]["errors"]
    return {kind: told.get(f"{kind}_details") or told[f"{kind}_type"] for kind in told if told[kind] is True}


def test_openais_sdk_runs_and_validates_graders(openai_client: openai.OpenAI) -> None:
    graders = openai_client.fine_tuning.alpha.graders
    grader: Any = CHECK
    answer = graders.run(grader=grader, model_sample="Paris", item={"label": "Paris"})
    assert answer.reward == 1.0
    assert answer.metadata.name == "check" and not answer.metadata.errors.other_error
    validated = graders.validate(grader=grader).grader
    assert validated is not None and validated.model_dump() == CHECK
    with pytest.raises(openai.BadRequestError, match="cosine compares embeddings"):
        similar: Any = {"type": "text_similarity", "name": "s", "input": "", "reference": ""}
        similar["evaluation_metric"] = "cosine"
        graders.validate(grader=similar)


def test_a_grader_is_answered_as_it_was_given(http: ReadyClient) -> None:
    multi = {"type": "multi", "name": "m", "graders": {"a": CHECK, "b": JUDGE}, "calculate_output": "a + b"}
    for grader in (CHECK, JUDGE, PYTHON, multi):
        answer = http.post(f"{PATH}/validate", json={"grader": grader}).json()
        assert answer == {"grader": grader}
        if grader is not multi:
            check("ValidateGraderResponse", answer)


def test_a_reward_comes_with_what_it_is_made_of(http: ReadyClient) -> None:
    graders = {"city": CHECK, "judge": JUDGE}
    multi = {"type": "multi", "name": "both", "graders": graders, "calculate_output": "(city + judge) / 2"}
    graded = run(http, multi, "Paris", item={"label": "Paris", "result": 0.5})
    assert graded["reward"] == 0.75
    assert graded["sub_rewards"] == {"city": 1.0, "judge": 0.5}
    assert errors(graded) == {}
    assert graded["metadata"]["type"] == "multi" and graded["metadata"]["execution_time"] >= 0


def test_a_served_model_judges_and_its_tokens_are_told(http: ReadyClient) -> None:
    graded = run(http, JUDGE, item={"result": 1.5})
    assert graded["reward"] == 1.5
    usage = graded["model_grader_token_usage_per_model"]["echo"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert graded["metadata"]["token_usage"] == usage["total_tokens"]
    assert graded["metadata"]["sampled_model_name"] == "echo"


def test_a_label_passes(http: ReadyClient) -> None:
    labels = {"labels": ["good", "bad"], "passing_labels": ["good"]}
    grader = {"type": "label_model", "name": "l", "model": "echo", "input": [SAYS], **labels}
    assert run(http, grader, item={"result": '"good"'})["reward"] == 1
    assert run(http, grader, item={"result": '"bad"'})["reward"] == 0


def test_a_model_whose_answer_is_cut_gives_no_reward(http: ReadyClient) -> None:
    graded = run(http, {**JUDGE, "sampling_params": {"max_completions_tokens": 5}}, item={"result": 1})
    assert graded["reward"] == 0 and [*errors(graded)] == ["model_grader_parse_error"]


def test_a_model_that_is_not_served_is_not_found(http: ReadyClient) -> None:
    for answer in (
        post(http, {**JUDGE, "model": "gpt-5"}, item={"result": 1}),
        http.post(f"{PATH}/validate", json={"grader": {**JUDGE, "model": "gpt-5"}}),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "grader.model")
        assert "gpt-5" in error["message"]


def test_a_grader_that_asks_a_model_needs_the_engine(start_asleep: ReadyClient) -> None:
    assert post(start_asleep, CHECK, item={"label": "a"}).status_code == 200
    assert post(start_asleep, JUDGE, item={"result": 1}).status_code == 503


@pytest.fixture
def start_asleep() -> Iterator[ReadyClient]:
    with echo_client() as client:
        client.post("/sleep")
        yield client


@pytest.mark.parametrize(
    ("grader", "kind", "told"),
    [
        (CHECK, "invalid_variable_error", "{{item.label}}: there is no 'label'"),
        ({**CHECK, "reference": "{{sample.output_json.a}}"}, "sample_parse_error", "the sample is not JSON"),
        (PYTHON, "python_grader_runtime_error", "KeyError: 'score' (line 2)"),
        ({**PYTHON, "source": "def grade(s, i): open('/etc/passwd')"}, "python_grader_runtime_error", "PermissionE"),
    ],
)
def test_what_goes_wrong_while_judging_is_told_beside_a_reward_of_0(
    http: ReadyClient, grader: dict[str, Any], kind: str, told: str
) -> None:
    graded = run(http, grader)
    assert graded["reward"] == 0
    assert [*errors(graded)] == [kind] and told in errors(graded)[kind]


@pytest.mark.parametrize(
    ("grader", "param", "told"),
    [
        ({"type": "endpoint", "url": "http://a"}, "grader.type", "tag 'endpoint' found"),
        ({**CHECK, "reference": "{{row.label}}"}, "grader.reference", "{{row.label}} is no reference"),
        ({**CHECK, "operation": "neq"}, "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
        ({**CHECK, "nonsense": 1}, "grader.nonsense", "Unknown parameter"),
        ({**CHECK, "input": "a" * 300_000}, "grader.input", "at most 262144"),
        (
            {"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a + b"},
            "grader.calculate_output",
            "there is no grader 'b'",
        ),
    ],
)
def test_what_cannot_judge_is_refused_by_name(http: ReadyClient, grader: dict[str, Any], param: str, told: str) -> None:
    for answer in (post(http, grader), http.post(f"{PATH}/validate", json={"grader": grader})):
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"].startswith(param.rpartition(".")[0])
        assert told in error["message"], error


def test_python_is_off_unless_the_server_says_otherwise() -> None:
    with echo_client() as http:
        answer = post(http, PYTHON, item={"score": 1})
        assert answer.status_code == 400
        assert "--python_graders true" in answer.json()["error"]["message"]
    with echo_client(python_graders=True) as http:
        assert run(http, PYTHON, item={"score": 0.25})["reward"] == 0.25


def test_endless_python_leaves_other_requests_alone(http: ReadyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.rewards.graders import grading, sandbox

    def impatient(source: str) -> sandbox.Sandbox:
        return sandbox.Sandbox(source, seconds=0.5)

    monkeypatch.setattr(grading, "Sandbox", impatient)
    found: list[dict[str, Any]] = []
    endless = {**PYTHON, "source": "def grade(sample, item):\n    while True: pass"}
    thread = threading.Thread(target=lambda: found.append(run(http, endless)))
    thread.start()
    assert http.get("/health").status_code == 200
    thread.join()
    assert "longer than 0.5 s" in errors(found[0])["python_grader_runtime_error"]


def test_a_request_that_asks_a_model_counts_in_its_keys_limit() -> None:
    keys: dict[str, Any] = {"api_key": [FULL], "key_requests_per_minute": 1}
    with echo_client(**keys) as http:
        sent: dict[str, Any] = {
            "json": {"grader": JUDGE, "model_sample": "a", "item": {"result": 1}},
            "headers": bearer(FULL),
        }
        assert [http.post(f"{PATH}/run", **sent).status_code for _ in range(2)] == [200, 429]


def test_a_server_that_ends_waits_for_no_grader() -> None:
    engine = EchoEngine(faults=EchoFaults(token_delay=0.05))
    with echo_client(engine, shutdown_timeout=0) as http:
        pool = http.parts[Pools].graders
        thread = threading.Thread(target=lambda: post(http, JUDGE, item={"result": 1}))
        thread.start()
        until(lambda: pool.running == 1)
        engine.faults.token_delay = 0
        thread.join()
    assert pool.running == 0


def test_json_that_is_nested_deep_is_no_grade_and_no_failure(http: ReadyClient) -> None:
    deep = "[" * 900 + "]" * 900
    graded = run(http, {**CHECK, "input": "{{sample.output_json}}", "reference": "a"}, deep)
    assert graded["reward"] == 0
    assert json.dumps(graded)
