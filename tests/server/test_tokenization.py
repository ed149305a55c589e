"""/tokenize and /detokenize."""

import httpx
import pytest


@pytest.fixture
def client(echo_url):
    with httpx.Client(base_url=echo_url) as client:
        yield client


def test_a_text_becomes_tokens_and_a_text_again(client):
    answer = client.post("/tokenize", json={"model": "echo", "prompt": "é"}).json()
    assert answer == {"count": 2, "max_model_len": 4096, "tokens": [195, 169]}
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "é"}


def test_the_spelling_of_the_tokens_is_given_on_demand(client):
    answer = client.post("/tokenize", json={"prompt": "a<|im_end|>", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["a", "<|im_end|>"]


def test_a_text_longer_than_the_context_is_counted_all_the_same(client):
    assert client.post("/tokenize", json={"prompt": "a" * 100_000}).json()["count"] == 100_000


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "foo": 1}, 400, "foo"),
        ("/tokenize", {"model": "nope", "prompt": "a"}, 404, "model"),
        ("/detokenize", {"tokens": [1, "a"]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, 400, "tokens[0]"),
        ("/detokenize", {"model": "nope", "tokens": []}, 404, "model"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(client, path, body, status, param):
    reply = client.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
