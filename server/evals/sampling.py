"""What a model is asked about an item, and its answer as graders and clients see it."""

from collections.abc import Mapping
from typing import Any

from engines.errors import InvalidRequest
from server.batches.answers import BODIES
from server.batches.batch import usage_of
from server.evals.schema import Completions, ItemReference, Responses, Sampled
from server.http.body import parse_object
from training.params.graders import GraderMessage
from training.rewards.graders.grading import sample_of
from training.rewards.graders.templates import look_up, references, render

ENDPOINTS = {"completions": "/v1/chat/completions", "responses": "/v1/responses"}
COMMON = ("temperature", "top_p", "seed", "tools", "reasoning_effort", "max_completion_tokens")
FIELDS = {"completions": (*COMMON, "response_format"), "responses": (*COMMON, "text")}
"""Sampling parameters of evals, for each kind of run."""
SHOWN = ("temperature", "top_p", "seed", "max_completion_tokens")
MESSAGES = "data_source.input_messages"


def check_sampled(source: Completions | Responses) -> None:
    """Raises InvalidRequest for what could ask nothing: before any row is looked at."""
    params = source.sampling_params or {}
    for name in params:
        if name not in FIELDS[source.type]:
            path = f"data_source.sampling_params.{name[:80]}"
            raise InvalidRequest(f"Unknown parameter: {path!r}.", param=path, code="unknown_parameter")
    if (source.model is None) != (source.input_messages is None):
        raise InvalidRequest(
            "data_source: 'model' and 'input_messages' come together; stored answers are judged without either.",
            param="data_source.model" if source.model is None else MESSAGES,
        )
    if source.model is None:
        return
    _check_messages(source)
    try:
        parse_object(BODIES[ENDPOINTS[source.type]], request_of(source, [{"role": "user", "content": "a"}]))
    except InvalidRequest as error:
        path = f"data_source.sampling_params.{error.param}"
        raise type(error)(f"{path}: {error.message}", param=path) from None


def _check_messages(source: Sampled) -> None:
    given = source.input_messages
    if isinstance(given, ItemReference):
        texts = {MESSAGES + ".item_reference": "{{" + given.item_reference + "}}"}
    elif given is not None:
        texts = {
            f"{MESSAGES}.template[{place}].content": text
            for place, message in enumerate(given.template)
            for text in message.texts()
        }
    for path, text in texts.items():
        try:
            if any(namespace != "item" for namespace, _ in references(text)):
                raise InvalidRequest("there is no sample yet: only {{item.NAME}} can be asked about.")
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}: {error.message}", param=path) from None


def messages_of(source: Sampled, item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked about an item. Raises GradeError for a reference that leads nowhere, InvalidRequest."""
    if isinstance(source.input_messages, ItemReference):
        found = look_up(source.input_messages.item_reference, item=item, sample={})
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise InvalidRequest(f"{source.input_messages.item_reference}: it is no list of messages.")
        return found
    assert source.input_messages is not None, "checked"
    return [_rendered(each, item) for each in source.input_messages.template]


def _rendered(message: GraderMessage, item: Mapping[str, Any]) -> dict[str, Any]:
    texts = [render(text, item=item, sample={}) for text in message.texts()]
    return {"role": message.role, "content": "".join(texts)}


def request_of(source: Completions | Responses, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of a request to the endpoint."""
    params = dict(source.sampling_params or {})
    if isinstance(source, Completions):
        return {"model": source.model, "messages": messages, **params}
    if (effort := params.pop("reasoning_effort", None)) is not None:
        params["reasoning"] = {"effort": effort}
    if (most := params.pop("max_completion_tokens", None)) is not None:
        params["max_output_tokens"] = most
    return {"model": source.model, "input": messages, "store": False, **params}


# ---- an answer


def sample_of_answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What graders see of an answer of either endpoint."""
    if "choices" in answer:
        choice = answer["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        return sample_of(message["content"] or "", ended=reason != "length", calls=message.get("tool_calls") or ())
    text = "".join(
        part.get("text") or "" for item in answer["output"] if item["type"] == "message" for part in item["content"]
    )
    calls = [
        {"id": item["call_id"], "type": "function", "function": {name: item[name] for name in ("name", "arguments")}}
        for item in answer["output"]
        if item["type"] == "function_call"
    ]
    return sample_of(text, ended=answer.get("status") == "completed", calls=calls)


def tokens_of(answer: Mapping[str, Any]) -> dict[str, int]:
    usage = usage_of(answer)
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def sample_to_wire(
    source: Any,
    messages: list[dict[str, Any]],
    sample: Mapping[str, Any] | None,
    *,
    model: str,
    tokens: Mapping[str, int],
) -> dict[str, Any]:
    """An answer as an output item shows it; `sample` None: there is none. What was not asked for is null."""
    params = (source.sampling_params or {}) if isinstance(source, Sampled) else {}
    choices = (sample or {}).get("choices") or [{}]
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message") or {"role": "assistant", "content": (sample or {}).get("output_text") or ""}
    prompt, completion = tokens.get("prompt_tokens", 0), tokens.get("completion_tokens", 0)
    return {
        "input": [{"role": str(each.get("role")), "content": _text_of(each.get("content"))} for each in messages],
        "output": [] if sample is None else [{**message, "content": _text_of(message.get("content"))}],
        "finish_reason": choice.get("finish_reason") or ("stop" if sample is not None else ""),
        "model": model,
        "usage": {
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens": prompt,
            "cached_tokens": tokens.get("cached_tokens", 0),
        },
        "error": None,
        **{name: params.get(name) for name in SHOWN},
    }


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
