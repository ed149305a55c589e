"""POST /v1/completions: prompts in, their continuations out."""

from typing import Annotated

from fastapi import APIRouter, Request, Response

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.text.fill_in_the_middle import FillInTheMiddle
from engines.text.prompt import Prompt
from engines.text.truncation import Truncation
from server.http.body import json_body
from server.http.description import STREAMED
from server.http.settings import HttpDep
from server.inference.inference import ReadyInference
from server.model.output import text_plan
from server.model.served import ModelDep, ServedModel
from server.openai.asked import Asked, read_structured
from server.openai.completion_renderer import CompletionRenderer
from server.openai.pipeline import Endpoint, respond
from server.openai.schema import CompletionRequest
from server.pools import Pools

router = APIRouter()

MAX_TOKENS = 16
"""OpenAI's default."""
MAX_OUTPUTS = 2048
"""Outputs of all prompts of a request together."""


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def create_completion(
    request: Request,
    body: Annotated[CompletionRequest, json_body(CompletionRequest)],
    model: ModelDep,
    inference: ReadyInference,
    http: HttpDep,
) -> Response:
    return await respond(COMPLETIONS, request, body, model, inference, http)


def check_completion(body: CompletionRequest) -> None:
    if body.best_of is not None and body.best_of < body.n:
        raise InvalidRequest(f"'best_of' must be at least 'n', which is {body.n}.", param="best_of")
    if body.best_of is not None and body.best_of > body.n and body.stream:
        raise InvalidRequest("'best_of' above 'n' cannot be streamed: the best are known at the end.", param="best_of")
    if body.return_tokens_as_token_ids and body.logprobs is None:
        body.ignored.add("return_tokens_as_token_ids")
    if body.suffix:
        _check_suffix(body)
    if (outputs := len(body.prompt) * (body.best_of or body.n)) > MAX_OUTPUTS:
        message = f"The prompts would have {outputs} outputs; a request has at most {MAX_OUTPUTS}."
        raise InvalidRequest(message, param="n" if body.best_of is None else "best_of")


def _check_suffix(body: CompletionRequest) -> None:
    if body.echo or body.truncate_prompt_tokens is not None:
        other = "echo" if body.echo else "truncate_prompt_tokens"
        raise InvalidRequest(f"'suffix' and {other!r} exclude each other.", param="suffix")
    if any(not isinstance(prompt, str) for prompt in body.prompt):
        raise InvalidRequest("'suffix' needs a prompt that is a text, not token ids.", param="suffix")


async def read_completion(
    body: CompletionRequest, model: ServedModel, capabilities: Capabilities, pools: Pools
) -> Asked:
    middle = _middle(body, model)
    return Asked(
        prompts=await pools.text.run_long(body.is_long, _prompts, body, model, capabilities),
        prompt_field="prompt",
        plan=text_plan(await read_structured(body, pools)),
        n=body.best_of or body.n,
        max_tokens=body.max_tokens,
        default_max_tokens=MAX_TOKENS,
        logprobs=0 if body.logprobs is None and body.best_of is not None else body.logprobs,
        prompt_logprobs=_prompt_logprobs(body),
        scored_outputs=body.n,
        stop_token_ids=() if middle is None else _ends(middle, capabilities),
        starts_text=middle is not None and middle.middle is not None,
        hidden_entries=body.echo,
    )


def _middle(body: CompletionRequest, model: ServedModel) -> FillInTheMiddle | None:
    """How the model is asked for what stands before a suffix, where there is one. Raises UnsupportedParameter."""
    if not body.suffix:
        return None  # there is nothing to stand before
    middle = model.renderer.fill_in_the_middle
    if middle is None:
        raise UnsupportedParameter(
            "'suffix' is not supported by this model: its tokenizer has no tokens to fill in the middle.",
            param="suffix",
        )
    return middle


def _ends(middle: FillInTheMiddle, capabilities: Capabilities) -> tuple[int, ...]:
    return tuple(end for end in middle.ends if end not in capabilities.eos_token_ids)


def _prompts(body: CompletionRequest, model: ServedModel, capabilities: Capabilities) -> list[Prompt]:
    output = next(most for most in (body.max_tokens, model.defaults.max_new_tokens, MAX_TOKENS) if most is not None)
    truncation = body.truncation(capabilities, output=output, side="left")
    return [_prompt(prompt, body, model, capabilities, truncation) for prompt in body.prompt]


def _prompt(
    prompt: str | list[int],
    body: CompletionRequest,
    model: ServedModel,
    capabilities: Capabilities,
    truncation: Truncation | None,
) -> Prompt:
    """With the text that `echo` says."""
    if isinstance(prompt, str):
        if body.suffix:
            return model.renderer.middle(prompt, body.suffix, capabilities, add_special_tokens=body.add_special_tokens)
        adds = body.add_special_tokens
        return model.renderer.text(prompt, capabilities, add_special_tokens=adds, truncation=truncation)
    ids = model.renderer.ids(prompt, capabilities, truncation=truncation)
    text = model.tokenizer.decode(ids) if body.echo else ""
    return Prompt(text, ids)


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    if not body.echo or body.logprobs is None:
        return body.prompt_logprobs
    counts = (body.logprobs, body.prompt_logprobs or 0)
    return -1 if -1 in counts else max(counts)


COMPLETIONS = Endpoint(id_prefix="cmpl-", check=check_completion, read=read_completion, renderer=CompletionRenderer)
