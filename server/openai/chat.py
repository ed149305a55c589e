"""POST /v1/chat/completions: messages in, one answer or several out, whole or in chunks."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest
from engines.text.prompt import Conversation, Prompt
from engines.types import ThinkingBudget
from server.http.body import json_body
from server.http.description import STREAMED
from server.http.keys.deps import CallerDep
from server.http.settings import HttpDep
from server.inference.inference import ReadyInference
from server.kept.completions import KeptCompletionsDep
from server.model.constraint import check
from server.model.output import OutputPlan
from server.model.served import ModelDep, ServedModel
from server.model.tools import ToolRequest
from server.openai.asked import Asked, read_structured
from server.openai.chat_renderer import ChatRenderer
from server.openai.conversation import check_conversation, to_conversation
from server.openai.functions import check_functions, read_tool_fields
from server.openai.keeping import keeping
from server.openai.pipeline import Endpoint, respond
from server.openai.schema import ChatRequest
from server.pools import Pools

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def create_chat_completion(
    request: Request,
    body: Annotated[ChatRequest, json_body(ChatRequest)],
    model: ModelDep,
    inference: ReadyInference,
    http: HttpDep,
    kept: KeptCompletionsDep,
    caller: CallerDep,
) -> Response:
    return await respond(keeping(CHAT, body, kept, caller), request, body, model, inference, http)


def check_chat(body: ChatRequest) -> None:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("'logprobs' must be true when 'top_logprobs' is given.", param="top_logprobs")
    if body.return_tokens_as_token_ids and not body.logprobs:
        body.ignored.add("return_tokens_as_token_ids")
    check_functions(body)
    check_conversation(body, body.messages)
    final = body.messages[-1]
    if body.echo and (final.role != "assistant" or not isinstance(final.content, str)):
        raise InvalidRequest("'echo' repeats a final message of role 'assistant'; there is none.", param="echo")


async def read_chat(body: ChatRequest, model: ServedModel, capabilities: Capabilities, pools: Pools) -> Asked:
    tools, prompt = await pools.text.run_long(body.is_long, read_messages, body, model, capabilities)
    structured = await read_structured(body, pools)
    constrained = structured is not None or tools.mode != "none"
    plan = await pools.text.run_long(constrained, model.output_format.plan, tools, structured, prompt.text)
    if (checked := await check(plan.unchecked, pools)) is not None:
        plan = replace(plan, structured=checked.structured)
    predicted = await pools.text.run_long(body.is_long, read_prediction, body, model, capabilities)
    body.ignored.add(*without_effect(body, plan, model, capabilities))
    return Asked(
        prompts=[prompt],
        prompt_field="messages",
        plan=plan,
        n=body.n,
        max_tokens=_max_tokens(body),
        default_max_tokens=None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        logprobs_field="top_logprobs",
        prompt_logprobs=body.prompt_logprobs,
        stop_token_ids=_end_of_answer(model, capabilities),
        thinking_budget=thinking_budget(body, plan, model),
        prediction_ids=predicted,
        starts_text=not body.continue_final_message,
    )


def read_messages(body: ChatRequest, model: ServedModel, capabilities: Capabilities) -> tuple[ToolRequest, Prompt]:
    tools, conversation = chat_conversation(body, model)
    output = next((most for most in (_max_tokens(body), model.defaults.max_new_tokens) if most is not None), 1)
    truncation = body.truncation(capabilities, output=output, side="left")
    return tools, model.renderer.chat(conversation, capabilities, truncation)


def read_prediction(body: ChatRequest, model: ServedModel, capabilities: Capabilities) -> list[int] | None:
    """The tokens that the answer is expected to have, where the engine has a use for them."""
    if body.prediction is None or not capabilities.predictions:
        return None
    return model.renderer.beginning(body.prediction.text, capabilities.max_model_len)


def chat_conversation(body: ChatRequest, model: ServedModel) -> tuple[ToolRequest, Conversation]:
    """What the chat template gets to see, and the tools that may be called."""
    tools = read_tool_fields(body)
    kwargs = template_kwargs(body, model)
    return tools, to_conversation(body, body.messages, tools, model, kwargs)


def _max_tokens(body: ChatRequest) -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _end_of_answer(model: ServedModel, capabilities: Capabilities) -> tuple[int, ...]:
    """What the template writes behind an answer ends one, also where the model itself goes on after it: a base model
    that was taught the template."""
    end = model.renderer.end_of_answer(capabilities.eos_token_ids)
    return () if end is None or end in capabilities.eos_token_ids else (end,)


def template_kwargs(body: ChatRequest, model: ServedModel) -> dict[str, Any]:
    """The variables for the chat template. Those that the client gives by name win."""
    budget = thinking_tokens(body)
    return {**model.effort.values(body.reasoning_effort, body.verbosity, budget), **body.chat_template_kwargs}


def thinking_tokens(body: ChatRequest) -> int | None:
    return body.thinking_token_budget if body.thinking_token_budget != -1 else None


def thinking_budget(body: ChatRequest, plan: OutputPlan, model: ServedModel) -> ThinkingBudget | None:
    tokens, form = thinking_tokens(body), plan.reasoning
    if tokens is None or form is None:
        return None
    end_ids = model.renderer.encode(form.end, add_special_tokens=False)
    return ThinkingBudget(
        tokens=tokens, start=form.start, end=form.end, end_ids=tuple(end_ids), is_open=plan.reasoning_open
    )


def without_effect(
    body: ChatRequest, plan: OutputPlan, model: ServedModel, capabilities: Capabilities
) -> tuple[str, ...]:
    """Fields that this model or its engine cannot follow, and whose answer is fit for use all the same."""
    asked = {
        "reasoning_effort": body.reasoning_effort is not None and not model.effort.knows_effort,
        "verbosity": body.verbosity is not None and not model.effort.knows_verbosity,
        "prediction": body.prediction is not None and not capabilities.predictions,
        "thinking_token_budget": thinking_tokens(body) is not None and plan.reasoning is None,
    }
    return tuple(name for name, ignored in asked.items() if ignored)


CHAT = Endpoint(id_prefix="chatcmpl-", check=check_chat, read=read_chat, renderer=ChatRenderer)
