"""Embeddings, through the SDK."""

import math
from typing import Any

import openai
import pytest


def vectors(client: openai.OpenAI, inputs: Any, **options: Any) -> list[Any]:
    return [item.embedding for item in client.embeddings.create(model="echo", input=inputs, **options).data]


def test_all_forms_of_input_give_the_same_vector(openai_client: openai.OpenAI) -> None:
    ids = list(b"abc")
    expected = vectors(openai_client, "abc")
    assert vectors(openai_client, ["abc"]) == expected
    assert vectors(openai_client, ids) == expected
    assert vectors(openai_client, [ids]) == expected


async def test_the_answers_of_many_inputs_are_in_their_order(async_openai_client: openai.AsyncOpenAI) -> None:
    texts = [f"text {i}" for i in range(40)]
    answer = await async_openai_client.embeddings.create(model="echo", input=texts)
    assert [item.index for item in answer.data] == list(range(40))
    alone = await async_openai_client.embeddings.create(model="echo", input=texts[7])
    assert alone.data[0].embedding == answer.data[7].embedding
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, texts))


def test_floats_and_base64_are_the_same_numbers(openai_client: openai.OpenAI) -> None:
    (decoded,) = vectors(openai_client, "abc")  # the SDK asks for base64 and decodes it
    (plain,) = vectors(openai_client, "abc", encoding_format="float")
    assert decoded == pytest.approx(plain, abs=1e-6)


def test_fewer_dimensions_are_of_length_one_again(openai_client: openai.OpenAI) -> None:
    (vector,) = vectors(openai_client, "abc", dimensions=8, encoding_format="float")
    assert len(vector) == 8 and math.isclose(math.hypot(*vector), 1)


def test_an_input_that_is_too_long_is_cut_at_its_end_or_where_the_request_says(openai_client: openai.OpenAI) -> None:
    def cut(inputs: str, **extra: Any) -> list[Any]:
        return vectors(openai_client, inputs, extra_body={"truncate_prompt_tokens": 3, **extra})

    assert cut("abcdef") == vectors(openai_client, "abc")
    assert cut("abcdef", truncation_side="left") == vectors(openai_client, "def")
    assert cut("x" * 5000, truncate_prompt_tokens=-1) == vectors(openai_client, "x" * 4095)
    answer = openai_client.embeddings.create(model="echo", input="abcdef", extra_body={"truncate_prompt_tokens": 2})
    assert answer.usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("inputs", "options", "param"),
    [
        ("", {}, "input"),
        ([], {}, "input"),
        (["a", 1], {}, "input"),
        ([[1], "a"], {}, "input"),
        ([100000], {}, "input"),
        ([-1], {}, "input"),
        (["a"] * 2049, {}, "input"),
        ("a" * 5000, {}, "input"),
        ("abc", {"dimensions": 0}, "dimensions"),
        ("abc", {"dimensions": 1000}, "dimensions"),
        ("abc", {"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_what_cannot_be_embedded_is_a_400_that_names_the_field(
    openai_client: openai.OpenAI, inputs: Any, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.embeddings.create(model="echo", input=inputs, **options)
    assert error.value.param == param


def test_an_unknown_model_is_a_404(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        openai_client.embeddings.create(model="nope", input="a")
