"""/v1/classify, as vLLM has it: texts, or a conversation, to the labels of the model's or the adapter's head."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from engines.errors import InvalidRequest
from engines.text.truncation import Truncation
from server.http.body import json_body
from server.http.keys.deps import CallerDep
from server.http.validation import MISSING
from server.inference.inference import ReadyInference
from server.model.served import ModelDep
from server.model.tools import read_tools
from server.openai.conversation import check_conversation, to_conversation
from server.openai.inputs import Input
from server.openai.schema import ChatMessage, ConversationFields
from server.pooling.activation import activated
from server.pooling.asking import Asking, no_head, respond, usage
from server.pooling.schema import ClassifyBody

router = APIRouter()


@router.post("/v1/classify", response_model=None)
@router.post("/classify", response_model=None, name="classify_without_version")
async def classify(
    request: Request,
    body: Annotated[ClassifyBody, json_body(ClassifyBody)],
    caller: CallerDep,
    model: ModelDep,
    inference: ReadyInference,
) -> Response:
    return await respond(request, body, caller, model, inference, answer)


async def answer(asking: Asking[ClassifyBody]) -> dict[str, Any]:
    head = asking.head
    if head is None:
        raise no_head(asking.leased)
    prompts = await asking.inference.pools.text.run_long(asking.body.is_long, _prompts, asking)
    logits = await asking.pool([head.read(ids) for ids in prompts], "classify")
    data = []
    for index, numbers in enumerate(logits):
        probs = activated(numbers, head, asked=asking.body.activates)
        label = head.labels[probs.index(max(probs))]
        data.append({"index": index, "label": label, "probs": probs, "num_classes": len(probs)})
    return {**asking.named("classify"), "data": data, "usage": usage(sum(map(len, prompts)))}


def _prompts(asking: Asking[ClassifyBody]) -> list[list[int]]:
    """What is long takes its time: call it in a thread. Raises InvalidRequest."""
    body = asking.body
    truncation = body.truncation(asking.capabilities, output=0, side="right")
    if body.messages is not None:
        if body.input is not None:
            raise InvalidRequest("'input' and 'messages' exclude each other.", param="messages")
        return [_conversation(asking, body.messages, truncation)]
    if body.input is None:
        raise InvalidRequest("Either 'input' or 'messages' must be given.", param="input", code=MISSING)
    if vain := sorted(ConversationFields.model_fields.keys() & body.model_fields_set):
        raise InvalidRequest(f"{vain[0]!r} is only allowed with 'messages'.", param=vain[0])
    return [_text(asking, item, truncation) for item in body.input]


def _text(asking: Asking[ClassifyBody], item: Input, truncation: Truncation | None) -> list[int]:
    renderer, capabilities = asking.model.renderer, asking.capabilities
    if not isinstance(item, str):
        return renderer.ids(item, capabilities, param="input", truncation=truncation)
    adds = asking.body.add_special_tokens is not False
    prompt = renderer.text(item, capabilities, add_special_tokens=adds, param="input", truncation=truncation)
    return prompt.ids


def _conversation(
    asking: Asking[ClassifyBody], messages: list[ChatMessage], truncation: Truncation | None
) -> list[int]:
    body, model = asking.body, asking.model
    check_conversation(body, messages)
    text = model.renderer.render(
        to_conversation(body, messages, read_tools(body.tools), model, body.chat_template_kwargs)
    )
    adds = body.add_special_tokens is True
    prompt = model.renderer.text(
        text, asking.capabilities, add_special_tokens=adds, param="messages", truncation=truncation
    )
    return prompt.ids
