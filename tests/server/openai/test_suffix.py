"""Completions between a prompt and a `suffix`, by models that were taught to fill in the middle."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engines.echo import VOCAB_SIZE, EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from engines.types import GenerationRequest, TokenOutput
from server.parts import make_parts
from tests.server.api import Api
from tests.server.client import ReadyClient

MIDDLE = "the middle"
QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")
PREFIX, SUFFIX, BETWEEN, PAD = range(VOCAB_SIZE, VOCAB_SIZE + 4)


class FillingEngine(EchoEngine):
    """Writes the middle, then what such models write behind it."""

    def __init__(self, more_tokens: int) -> None:
        super().__init__()
        self.requests: list[GenerationRequest] = []
        self._capabilities = replace(self._capabilities, vocab_size=VOCAB_SIZE + more_tokens)

    def _check_prompt(self, prompt_ids: list[int]) -> None:
        """Any."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        async for output in super().generate(replace(request, prompt_ids=list(MIDDLE.encode()))):
            if output.finish_reason is None or PAD not in request.sampling.stop_token_ids:
                yield output
            else:
                yield msgspec.structs.replace(output, token_ids=(PAD,), stop_token_id=PAD)


@contextmanager
def api_with(*marks: str) -> Iterator[tuple[Api, FillingEngine]]:
    """A server whose tokenizer has these special tokens more."""
    tokenizer, engine = echo_tokenizer(), FillingEngine(len(marks))
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    with ReadyClient(make_parts(engine, tokenizer, DeployParams(model="echo", without_state=True))) as client:
        yield Api(client), engine


@pytest.mark.parametrize("stream", [False, True])
def test_the_text_between_prompt_and_suffix_is_answered(stream: bool) -> None:
    with api_with(*QWEN) as (api, engine):
        body: dict[str, Any] = {"prompt": "before ", "suffix": " behind", "max_tokens": 50}
        choices = [
            choice
            for answer in (api.completion_chunks(**body) if stream else [api.complete(**body)])
            for choice in answer["choices"]
        ]
    assert "".join(choice["text"] for choice in choices) == MIDDLE
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", PAD)
    (request,) = engine.requests
    assert request.prompt_ids == [PREFIX, *b"before ", SUFFIX, *b" behind", BETWEEN]


def test_each_of_several_prompts_gets_the_suffix() -> None:
    with api_with(*QWEN) as (api, engine):
        answer = api.complete(["a", "b"], suffix="c", return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [
        [PREFIX, ord(prompt), SUFFIX, ord("c"), BETWEEN] for prompt in "ab"
    ]
    assert answer["usage"]["prompt_tokens"] == 10
    assert len(engine.requests) == 2


def test_an_empty_suffix_is_none() -> None:
    with api_with(*QWEN) as (api, engine):
        api.complete("a", suffix="")
    assert engine.requests[0].prompt_ids == [ord("a")]


@pytest.mark.parametrize(
    "body", [{"echo": True}, {"truncate_prompt_tokens": 5}, {"prompt": [1, 2]}], ids=lambda body: next(iter(body))
)
def test_what_cannot_be_meant_beside_a_suffix_is_refused(body: dict[str, Any]) -> None:
    with api_with(*QWEN) as (api, _):
        refusal = api.refused_completion(suffix="x", **body)
    assert (refusal.status, refusal.param, refusal.code) == (400, "suffix", "invalid_request")


def test_a_model_without_the_tokens_for_it_refuses_a_suffix(make_api: Callable[..., Api]) -> None:
    refusal = make_api().refused_completion(suffix="x")
    assert (refusal.status, refusal.param, refusal.code) == (400, "suffix", "unsupported_parameter")
