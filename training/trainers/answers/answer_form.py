"""The form that drawn answers are held to."""

from collections.abc import Iterable, Mapping
from typing import Any

from engines.errors import InvalidRequest
from engines.text.grammar_check import validate
from engines.text.prompt import PromptRenderer
from engines.text.reasoning_formats import find_reasoning_format
from engines.types import Structured
from training.params.response_format import structured_of
from training.params.rlhf import RlhfParams


def answer_form(params: RlhfParams, tokenizer: Any, rows: Iterable[Mapping[str, Any]]) -> Structured | None:
    """What `response_format` asks for. `rows`: prompts, of which the first is looked at.

    Raises InvalidRequest where no engine can enforce it, or where the model would reason before it answers: the form
    would hold from its first token on.
    """
    structured = structured_of(params.response_format)
    if structured is None:
        return None
    reasoning = find_reasoning_format(PromptRenderer(tokenizer).template, tokenizer.get_added_vocab())
    if reasoning is not None and not reasoning.is_over(_prompt(rows, tokenizer)):
        message = (
            "the model reasons before it answers, and its reasoning is not of that form: turn reasoning off by "
            "chat_template_kwargs where the template can, or leave this out"
        )
        raise InvalidRequest(message, param="response_format")
    return validate(structured, "response_format")


def _prompt(rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> str:
    text: str = tokenizer.decode(next(iter(rows))["prompt_ids"])
    return text
