"""The models, as the SDKs of OpenAI and Anthropic see them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.adapter_folders import write_adapter
from tests.server.api import Api, succeeded


def test_the_base_model_is_listed(openai_client: openai.OpenAI) -> None:
    (model,) = openai_client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("echo", "model", "tuneserve")
    assert model.model_extra == {"root": "echo", "max_model_len": 4096}


def test_one_model_is_found_by_its_name(openai_client: openai.OpenAI) -> None:
    assert openai_client.models.retrieve("echo").id == "echo"


def test_an_unknown_model_is_not_found_even_with_a_slash(openai_client: openai.OpenAI) -> None:
    for call in (openai_client.models.retrieve, openai_client.models.delete):
        with pytest.raises(openai.NotFoundError) as error:
            call("org/nope")
        assert error.value.code == "model_not_found"


def test_the_base_model_cannot_be_deleted(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="base model"):
        openai_client.models.delete("echo")


# --- Anthropic's


def test_anthropics_sdk_lists_the_base_model(anthropic_client: anthropic.Anthropic) -> None:
    [model] = anthropic_client.models.list()
    assert (model.id, model.type, model.display_name, model.lifecycle) == ("echo", "model", "echo", "active")
    assert (model.max_input_tokens, model.max_tokens) == (4096, 4096)
    assert model.created_at.tzinfo is not None
    assert anthropic_client.models.retrieve("echo") == model


def test_anthropics_sdk_finds_no_unknown_model(anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as error:
        anthropic_client.models.retrieve("org/nope")
    assert error.value.type == "not_found_error"


@pytest.fixture
def many(make_api: Callable[..., Api], tmp_path: Path) -> Api:
    """The base model and four adapters."""
    write_adapter(tmp_path / "a")
    api = make_api(adapter_roots=[str(tmp_path)])
    for name in "abcd":
        api.adapters.create(name, "a")
    return api


def models(api: Api, **query: Any) -> dict[str, Any]:
    return succeeded(api.http.get("/v1/models", params=query, headers={"anthropic-version": "2023-06-01"}))


def ids(page: dict[str, Any]) -> tuple[list[str], bool]:
    found = [card["id"] for card in page["data"]]
    assert (page["first_id"], page["last_id"]) == ((found[0], found[-1]) if found else (None, None))
    return found, page["has_more"]


def test_anthropics_list_comes_in_pages(many: Api) -> None:
    assert ids(models(many)) == (["echo", "a", "b", "c", "d"], False)
    assert ids(models(many, limit=2)) == (["echo", "a"], True)
    assert ids(models(many, limit=2, after_id="a")) == (["b", "c"], True)
    assert ids(models(many, limit=2, after_id="c")) == (["d"], False)
    assert ids(models(many, after_id="d")) == ([], False)
    assert ids(models(many, limit=2, before_id="c")) == (["a", "b"], True)
    assert ids(models(many, limit=2, before_id="b")) == (["echo", "a"], False)
    assert len(many.http.get("/v1/models", params={"limit": 2}).json()["data"]) == 5  # OpenAI's has no pages


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after_id": "?"}, {"before_id": "?"}]
)
def test_a_page_that_there_cannot_be_is_refused(many: Api, query: dict[str, Any]) -> None:
    reply = many.http.get("/v1/models", params=query, headers={"anthropic-version": "2023-06-01"})
    assert (reply.status_code, reply.json()["error"]["details"]["param"]) == (400, next(iter(query)))
