"""POST /v1/chat/completions: messages in, one answer or several out, whole or in chunks."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.text.prompt import Conversation, Prompt
from server.http.body import json_body
from server.http.settings import HttpDep
from server.inference.inference import ReadyInference
from server.model.constraint import check
from server.model.served import ModelDep, ServedModel
from server.model.tools import ToolRequest, read_tools
from server.openai.asked import Asked, read_structured
from server.openai.chat_renderer import ChatRenderer
from server.openai.conversation import check_conversation, to_conversation
from server.openai.pipeline import Endpoint, respond
from server.openai.schema import ChatRequest
from server.pools import Pools

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    request: Request,
    body: Annotated[ChatRequest, json_body(ChatRequest)],
    model: ModelDep,
    inference: ReadyInference,
    http: HttpDep,
) -> Response:
    return await respond(CHAT, request, body, model, inference, http)


def check_chat(body: ChatRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("'logprobs' must be true when 'top_logprobs' is given.", param="top_logprobs")
    if body.tools is None and body.parallel_tool_calls is not None:
        raise InvalidRequest("'parallel_tool_calls' is only allowed with 'tools'.", param="parallel_tool_calls")
    check_conversation(body, body.messages)
    final = body.messages[-1]
    if body.echo and (final.role != "assistant" or not isinstance(final.content, str)):
        raise InvalidRequest("'echo' repeats a final message of role 'assistant'; there is none.", param="echo")


async def read_chat(body: ChatRequest, model: ServedModel, capabilities: Capabilities, pools: Pools) -> Asked:
    tools, prompt = await pools.text.run_long(body.is_long, read_messages, body, model, capabilities)
    structured = await read_structured(body, pools)
    constrained = structured is not None or tools.mode != "none"
    plan = await pools.text.run_long(constrained, model.output_format.plan, tools, structured, prompt.text)
    await check(plan.unchecked, pools)
    return Asked(
        prompts=[prompt],
        prompt_field="messages",
        plan=plan,
        n=body.n,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        default_max_tokens=None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        logprobs_field="top_logprobs",
        prompt_logprobs=body.prompt_logprobs,
        stop_token_ids=_end_of_answer(model, capabilities),
        starts_text=not body.continue_final_message,
    )


def read_messages(body: ChatRequest, model: ServedModel, capabilities: Capabilities) -> tuple[ToolRequest, Prompt]:
    tools, conversation = chat_conversation(body, model)
    return tools, model.renderer.chat(conversation, capabilities)


def chat_conversation(body: ChatRequest, model: ServedModel) -> tuple[ToolRequest, Conversation]:
    """What the chat template gets to see, and the tools that may be called."""
    tools = read_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    kwargs = template_kwargs(body, model.renderer.template)
    return tools, to_conversation(body, body.messages, tools, model, kwargs)


def _end_of_answer(model: ServedModel, capabilities: Capabilities) -> tuple[int, ...]:
    """What the template writes behind an answer ends one, also where the model itself goes on after it: a base model
    that was taught the template."""
    end = model.renderer.end_of_answer(capabilities.eos_token_ids)
    return () if end is None or end in capabilities.eos_token_ids else (end,)


def template_kwargs(body: ChatRequest, template: str) -> dict[str, Any]:
    """The variables for the chat template; `reasoning_effort` is one where the template knows it, or can be told
    whether to think at all."""
    effort = body.reasoning_effort
    if effort is None:
        return body.chat_template_kwargs
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort, **body.chat_template_kwargs}
    if "enable_thinking" in template and effort in ("none", "medium"):
        return {"enable_thinking": effort != "none", **body.chat_template_kwargs}
    if effort == "none" and "think" not in template.lower():
        return body.chat_template_kwargs  # a model that does not reason anyway
    raise UnsupportedParameter(f"This model has no reasoning effort {effort!r}.", param="reasoning_effort")


CHAT = Endpoint(id_prefix="chatcmpl-", check=check_chat, read=read_chat, renderer=ChatRenderer)
