"""The base model, as OpenAI's SDK sees it."""

import openai
import pytest


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
