"""Classes of texts, from where a client stands."""

import math
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine
from engines.types import Head
from tests.adapter_folders import write_head_adapter
from tests.server.client import ReadyClient, echo_client
from tests.server.pooling.conftest import Made, Recording

MESSAGES = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}]


def classify(client: ReadyClient, **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/classify", json={"model": "echo"} | fields)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def refused(client: ReadyClient, path: str = "/v1/classify", status: int = 400, **fields: Any) -> dict[str, Any]:
    reply = client.post(path, json={"model": "echo"} | fields)
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    return error


def test_an_answer_is_in_the_shape_of_vllm(make: Made) -> None:
    answer = classify(make("good", "bad"), input=["a text", "another"])
    assert answer["object"] == "list" and answer["model"] == "echo" and answer["id"].startswith("classify-")
    assert answer["usage"] == {"prompt_tokens": 13, "total_tokens": 13, "completion_tokens": 0}
    assert [one["index"] for one in answer["data"]] == [0, 1]
    for one in answer["data"]:
        assert one.keys() == {"index", "label", "probs", "num_classes"} and one["num_classes"] == 2
        assert one["label"] == ("good", "bad")[one["probs"].index(max(one["probs"]))]


def test_all_forms_of_input_give_the_same_classes_on_both_paths(make: Made) -> None:
    client = make("good", "bad")
    expected = classify(client, input="abc")["data"]
    for given in (["abc"], list(b"abc"), [list(b"abc")]):
        assert classify(client, input=given)["data"] == expected
    of_the_base = client.post("/classify", json={"input": "abc"}).json()  # unless a model is given
    assert of_the_base["data"] == expected


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_one_of_several_labels_has_probabilities_that_sum_to_one(make: Made, problem_type: str | None) -> None:
    client = make("a", "b", "c", problem_type=problem_type)
    (one,) = classify(client, input="abc")["data"]
    (raw,) = classify(client, input="abc", use_activation=False)["data"]
    assert math.isclose(sum(one["probs"]), 1)
    powers = [math.exp(logit) for logit in raw["probs"]]
    assert one["probs"] == pytest.approx([power / sum(powers) for power in powers])


def test_labels_that_may_hold_at_once_have_a_probability_each(make: Made) -> None:
    client = make("a", "b", problem_type="multi_label_classification")
    (one,) = classify(client, input="abc")["data"]
    (raw,) = classify(client, input="abc", use_activation=False)["data"]
    assert one["probs"] == pytest.approx([1 / (1 + math.exp(-logit)) for logit in raw["probs"]])


def test_a_regression_is_a_number_as_it_is(make: Made) -> None:
    client = make("reward", problem_type="regression")
    assert classify(client, input="abc")["data"] == classify(client, input="abc", use_activation=False)["data"]


@pytest.mark.parametrize("name", ["activation", "softmax"])
def test_earlier_names_of_a_field_mean_the_same(make: Made, name: str) -> None:
    client = make("a", "b")
    assert (
        classify(client, input="a", **{name: False})["data"]
        == (classify(client, input="a", use_activation=False)["data"])
    )


def test_messages_are_classified_as_the_chat_template_writes_them() -> None:
    engine = Recording(head=Head(labels=("good", "bad")))
    with echo_client(engine) as client:
        classify(client, messages=MESSAGES)
        classify(client, messages=MESSAGES[:1], add_generation_prompt=True)
    both, asked = engine.texts()
    assert both == "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nFine.<|im_end|>\n"
    assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_padding_at_the_end_of_a_text_is_not_what_it_is_judged_by() -> None:
    engine = Recording(head=Head(labels=("good", "bad"), padding=258))
    with echo_client(engine) as client:
        classify(client, input=[[97, 258, 258], [258, 97], [258, 258]])
    assert [request.prompt_ids for request in engine.requests] == [[97], [258, 97], [258]]


def test_a_text_that_is_too_long_is_cut_where_the_request_says(make: Made) -> None:
    client = make("a", "b")
    assert classify(client, input="abcdef", truncate_prompt_tokens=3)["data"] == classify(client, input="abc")["data"]
    error = refused(client, input="a" * 5000)
    assert error["code"] == "context_length_exceeded" and error["param"] == "input"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "messages": MESSAGES}, "messages"),
        ({"input": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": []}, "messages"),
        ({"input": "a", "use_activation": "yes"}, "use_activation"),
        ({"input": [9999]}, "input"),
    ],
)
def test_what_cannot_be_classified_is_a_400_that_names_the_field(
    make: Made, fields: dict[str, Any], param: str
) -> None:
    assert refused(make("a", "b"), **fields)["param"] == param


def test_an_unknown_model_is_a_404(make: Made) -> None:
    assert refused(make("a", "b"), status=404, model="nope", input="a")["code"] == "model_not_found"


# ---- who classifies, and who does not


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES[:1]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
    ],
)
def test_a_model_that_classifies_says_so_where_it_is_asked_to_generate(
    make: Made, path: str, fields: dict[str, Any]
) -> None:
    error = refused(make("a", "b"), path, **fields)
    assert error["code"] == "unsupported_parameter" and error["param"] == "model"
    assert "classifies texts and generates none" in error["message"] and "/v1/classify" in error["message"]


def test_a_model_without_a_head_says_so(make: Made) -> None:
    error = refused(make(), input="a")
    assert error["param"] == "model" and "has no head to classify with" in error["message"]


def test_adapters_with_heads_classify_beside_a_base_that_chats(make: Made, tmp_path: Path) -> None:
    client = make(adapter_roots=(str(tmp_path),))
    for name, labels in (("reward", 1), ("topics", 3)):
        write_head_adapter(tmp_path / name, labels=labels)
        assert client.post("/v1/adapters", json={"name": name, "path": name}).status_code == 200
    assert classify(client, model="topics", input="a")["data"][0]["num_classes"] == 3
    assert classify(client, model="reward", input="a")["data"][0]["label"] == "LABEL_0"
    chat = client.post("/v1/chat/completions", json={"model": "echo", "messages": MESSAGES[:1]})
    assert chat.status_code == 200
    error = refused(client, "/v1/fine_tuning/jobs", model="reward", training_file="file-none")
    assert error["param"] == "model" and "'reward' classifies texts" in error["message"]
    error = refused(client, "/v1/chat/completions", model="reward", messages=MESSAGES[:1])
    assert "'reward' classifies texts" in error["message"]
    assert client.delete("/v1/adapters/reward").status_code == 200
    assert refused(client, status=404, model="reward", input="a")["code"] == "model_not_found"


def test_an_engine_that_dies_meanwhile_is_a_500_and_one_that_is_not_there_a_503(make: Made) -> None:
    engine = EchoEngine(head=Head(labels=("a", "b")))
    client = make(engine=engine, raise_server_exceptions=False)
    engine.faults.die_after = 0
    assert refused(client, status=500, input="a")["code"] == "internal_error"
    assert refused(client, status=503, input="a")["code"] == "service_unavailable"


def test_tokens_are_counted_and_limited_as_those_of_other_requests(make: Made) -> None:
    key = "sixteen-letters-or-more"
    client = make("a", "b", api_key=(f"team=infer:{key}",), key_tokens_per_minute=10)
    headers = {"authorization": f"Bearer {key}"}
    first = client.post("/v1/classify", json={"input": "abcdefgh"}, headers=headers)
    assert first.status_code == 200 and first.headers["x-ratelimit-remaining-tokens"] == "2"
    second = client.post("/v1/classify", json={"input": "abcdefgh"}, headers=headers)
    assert second.status_code == 429
    refusal = client.post("/v1/classify", json={"input": "a", "priority": -1}, headers=headers)
    assert refusal.status_code == 403 and refusal.json()["error"]["param"] == "priority"
    metrics = client.get("/metrics", headers=headers).text
    counted = next(line for line in metrics.splitlines() if line.startswith("tuneserve:prompt_tokens_total{"))
    assert counted.endswith(" 8.0")
