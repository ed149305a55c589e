"""Scores and ranks, from where a client stands."""

import math
from pathlib import Path
from typing import Any

import pytest

from engines.echo import echo_tokenizer
from engines.params.deploy import DeployParams
from engines.types import Head
from server.parts import make_parts
from tests.adapter_folders import write_head_adapter
from tests.server.client import ReadyClient, echo_client
from tests.server.pooling.conftest import Made, Recording

QUERY, DOCUMENTS = "what is a panda?", ["hi", "The giant panda is a bear.", "a panda"]
ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]


def ask(client: ReadyClient, path: str, status: int = 200, **fields: Any) -> dict[str, Any]:
    reply = client.post(path, json={"model": "echo"} | fields)
    assert reply.status_code == status, reply.text
    answer: dict[str, Any] = reply.json()
    return answer if status == 200 else answer["error"]


def scores(client: ReadyClient, **fields: Any) -> list[float]:
    return [one["score"] for one in ask(client, "/v1/score", **fields)["data"]]


def recorded(*, labels: tuple[str, ...] = ("reward",), **options: Any) -> Recording:
    return Recording(head=Head(labels=labels, **options))


# ---- scores


def test_an_answer_is_in_the_shape_of_vllm(make: Made) -> None:
    answer = ask(make("reward"), "/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    assert answer["object"] == "list" and answer["id"].startswith("score-") and answer["model"] == "echo"
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert all(one["object"] == "score" and 0 <= one["score"] <= 1 for one in answer["data"])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_all_pairs_of_names_mean_the_same(make: Made) -> None:
    client = make("reward")
    expected = scores(client, text_1=QUERY, text_2=DOCUMENTS)
    for one, other in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        assert scores(client, **{one: QUERY, other: DOCUMENTS}) == expected
    assert ask(client, "/score", text_1=[QUERY] * 3, text_2=DOCUMENTS)["data"][2]["score"] == expected[2]


def test_a_reward_model_reads_the_query_as_the_user_and_the_document_as_the_answer() -> None:
    engine = recorded()
    with echo_client(engine) as client:
        scores(client, text_1="Hello!", text_2="Hi.")
        scores(client, text_1=ASKED, text_2=["Hi.", "Go."])
        scores(client, text_1=[ASKED, ASKED[1:]], text_2=["Hi.", "Go."])
    turn = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    kind = "<|im_start|>system\nBe kind.<|im_end|>\n"
    hi, go = turn.format("Hi."), turn.format("Go.")
    assert engine.texts() == [hi, kind + hi, kind + go, kind + hi, go]


def test_a_template_that_is_made_for_queries_and_documents_gets_them() -> None:
    template = (
        "{% for message in messages %}{% if message['role'] == 'query' %}Q: {{ message['content'] }}"
        "{% elif message['role'] == 'document' %} D: {{ message['content'] }}{% endif %}{% endfor %}"
        "{% if instruction %} I: {{ instruction }}{% endif %}"
    )
    engine = recorded()
    with echo_client(engine, chat_template=template) as client:
        scores(client, text_1="a", text_2="b")
        scores(client, text_1="a", text_2="b", instruction="judge")
        scores(client, text_1="a", text_2="b", chat_template_kwargs={"instruction": "judge"})
    assert engine.texts() == ["Q: a D: b", "Q: a D: b I: judge", "Q: a D: b I: judge"]


def test_a_model_without_a_template_reads_both_as_its_tokenizer_encodes_pairs() -> None:
    tokenizer = echo_tokenizer()
    tokenizer.chat_template = None
    engine = recorded()
    with ReadyClient(make_parts(engine, tokenizer, DeployParams(model="echo", without_state=True), None)) as client:
        scores(client, text_1="a", text_2="b")
        error = ask(client, "/v1/score", 400, text_1=ASKED, text_2="b")
    assert engine.requests[0].prompt_ids == tokenizer("a", "b")["input_ids"]
    assert error["param"] == "text_1" and "no chat template" in error["message"]


def test_a_reward_is_a_number_as_it_is_and_another_single_label_a_probability(make: Made) -> None:
    reward, label = make("reward", problem_type="regression"), make("relevant")
    (raw,) = scores(reward, text_1="a", text_2="b")
    assert scores(label, text_1="a", text_2="b") == [pytest.approx(1 / (1 + math.exp(-raw)))]
    assert scores(label, text_1="a", text_2="b", use_activation=False) == [raw]


def test_a_model_without_a_head_gives_the_cosine_of_embeddings(make: Made) -> None:
    client = make()
    texts = ["a", "b", "c"]
    answer = client.post("/v1/embeddings", json={"model": "echo", "input": texts}).json()["data"]
    a, b, c = (one["embedding"] for one in answer)
    dots = [sum(x * y for x, y in zip(a, other, strict=True)) for other in (b, c, a)]
    assert scores(client, text_1="a", text_2=["b", "c", "a"]) == pytest.approx(dots)
    assert scores(client, text_1=["b", "c"], text_2=["b", "c"]) == pytest.approx([1, 1])
    assert ask(client, "/v1/score", 400, text_1=ASKED, text_2="b")["param"] == "text_1"


def test_a_head_of_several_labels_gives_no_score(make: Made) -> None:
    error = ask(make("a", "b"), "/v1/score", 400, text_1="a", text_2="b")
    assert error["param"] == "model" and "2 labels" in error["message"] and "/v1/classify" in error["message"]


def test_the_engine_is_told_who_asks_and_before_whom() -> None:
    engine = recorded()
    keys = ("team=infer:sixteen-letters-one", "ops=admin+infer:sixteen-letters-two")
    with echo_client(engine, api_key=keys) as client:
        asked: list[tuple[str, dict[str, Any]]] = [("one", {"cache_salt": "a"}), ("one", {}), ("two", {"priority": -3})]
        for key, fields in asked:
            headers = {"authorization": f"Bearer sixteen-letters-{key}"}
            assert client.post("/v1/score", json={"text_1": "a", "text_2": "b"} | fields, headers=headers).is_success
    assert [request.share for request in engine.requests] == ["team", "team", "ops"]
    assert [request.priority for request in engine.requests] == [0, 0, -3]
    assert len({request.cache_salt for request in engine.requests}) == 3


def test_long_texts_are_read_as_far_as_the_request_says() -> None:
    engine = recorded()
    with echo_client(engine) as client:
        scores(client, text_1="abcdef", text_2="uvwxyz", max_tokens_per_query=2, max_tokens_per_doc=3)
    assert "user\nab<|im_end|>" in engine.texts()[0] and "assistant\nuvw<|im_end|>" in engine.texts()[0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, None),
        ({"text_1": "a"}, None),
        ({"text_1": "a", "documents": "b"}, None),
        ({"text_1": "a", "text_2": "b", "queries": "a"}, None),
        ({"text_1": [], "text_2": "b"}, "text_1"),
        ({"text_1": "a", "text_2": []}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ({"queries": "a", "documents": ["b"] * 2049}, "documents"),
        ({"text_1": "a", "text_2": {"image": "b"}}, "text_2"),
        ({"text_1": "a", "text_2": "b" * 5000}, "text_2"),
        ({"text_1": "a", "text_2": "b", "max_tokens_per_doc": -1}, "max_tokens_per_doc"),
    ],
)
def test_what_cannot_be_scored_is_a_400_that_names_the_field(
    make: Made, fields: dict[str, Any], param: str | None
) -> None:
    error = ask(make("reward"), "/v1/score", 400, **fields)
    assert param is None or (error["param"] or "").startswith(param)


def test_a_reward_adapter_scores_beside_a_base_that_chats(make: Made, tmp_path: Path) -> None:
    client = make(adapter_roots=(str(tmp_path),))
    write_head_adapter(tmp_path / "reward")
    assert client.post("/v1/adapters", json={"name": "reward", "path": "reward"}).status_code == 200
    own = scores(client, model="reward", text_1="a", text_2="b")
    assert own != scores(client, text_1="a", text_2="b"), "the base has no head, and gives cosines"
    assert "reward" in [card["id"] for card in client.get("/v1/models").json()["data"]]


# ---- ranks


def test_jinas_example_body_is_answered_in_jinas_shape(make: Made) -> None:
    body: dict[str, Any] = {
        "query": "Organic skincare products for sensitive skin",
        "documents": [
            "Organic skincare for sensitive skin with aloe vera and chamomile.",
            "New makeup trends focus on bold colors and innovative techniques",
            {"text": "Bio-Hautpflege für empfindliche Haut mit Aloe Vera und Kamille"},
        ],
        "top_n": 2,
        "return_documents": True,
    }
    for path in ("/v1/rerank", "/rerank"):
        answer = ask(make("relevant"), path, **body)
        assert answer.keys() >= {"model", "results", "usage"} and answer["usage"]["total_tokens"] > 0
        first, second = answer["results"]
        assert first["relevance_score"] >= second["relevance_score"] and 0 <= second["relevance_score"] <= 1
        given = body["documents"][first["index"]]
        assert first["document"] == {"text": given if isinstance(given, str) else given["text"]}


def test_coheres_example_body_is_answered_in_coheres_shape(make: Made) -> None:
    answer = ask(
        make("relevant"),
        "/v2/rerank",
        query="What is the capital of the United States?",
        documents=[
            "Carson City is the capital city of the American state of Nevada.",
            "Capital punishment has existed in the United States since before the United States was a country.",
            "Washington, D.C. is the capital of the United States.",
        ],
        top_n=3,
        max_tokens_per_doc=4096,
    )
    assert answer.keys() == {"id", "results", "meta"} and answer["meta"]["api_version"]["version"] == "2"
    assert sorted(one["index"] for one in answer["results"]) == [0, 1, 2]
    assert all(one.keys() == {"index", "relevance_score"} for one in answer["results"])


def test_ranks_follow_scores_and_all_documents_are_ranked_unless_told_otherwise(make: Made) -> None:
    client = make("reward", problem_type="regression")
    expected = scores(client, text_1=QUERY, text_2=DOCUMENTS)
    results = ask(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS, return_documents=False)["results"]
    assert [one["index"] for one in results] == sorted(range(3), key=lambda index: -expected[index])
    assert all(0 < one["relevance_score"] < 1 and "document" not in one for one in results)
    raw = ask(client, "/v1/rerank", query=QUERY, documents=DOCUMENTS, use_activation=False)["results"]
    assert [one["relevance_score"] for one in raw] == sorted(expected, reverse=True)


def test_answers_to_a_conversation_are_ranked() -> None:
    engine = recorded()
    with echo_client(engine) as client:
        ask(client, "/v1/rerank", query=ASKED, documents=["Hi.", "Go."])
    assert all(text.startswith("<|im_start|>system\nBe kind.") for text in engine.texts())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "a"}, "documents"),
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": [{"title": "b"}]}, "documents"),
        ({"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
    ],
)
def test_what_cannot_be_ranked_is_a_400_that_names_the_field(make: Made, fields: dict[str, Any], param: str) -> None:
    assert ask(make("reward"), "/v2/rerank", 400, **fields)["param"].startswith(param)
