"""Drawn answers as a server would tell them: the reasoning apart, and the tools that they call."""

from collections.abc import Mapping, Sequence
from typing import Any

from engines.answers.deltas import Delta
from engines.answers.parser import answer_parser
from engines.text.prompt import PromptRenderer
from engines.text.reasoning_formats import find_reasoning_format
from engines.text.tool_formats import find_tool_format
from training.data.columns import read
from training.data.problems import BadRow
from training.data.samples import Conversation, Prompt
from training.rewards.graders.grading import sample_of
from training.rewards.types import Answered


class AnswerReader:
    """Makes OpenAI's `sample` of an answer."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: the policy's, whose chat template tells how reasoning and calls are written."""
        template, added = PromptRenderer(tokenizer).template, tokenizer.get_added_vocab()
        self._tokenizer = tokenizer
        self._reasoning = find_reasoning_format(template, added)
        self._tools = find_tool_format(template, added)
        forms = [form for form in (self._reasoning, self._tools) if form is not None]
        marks = {token_id for form in forms for token_id in form.token_ids.values()}
        self._hidden = set(tokenizer.all_special_ids) - marks
        self._channels = any(form.channels for form in forms)

    def __call__(self, answer: Answered) -> dict[str, Any]:
        schemas = _schemas(answer.item)
        if not schemas and self._reasoning is None:
            return sample_of(answer.text, ended=answer.ended)
        prompt = self._tokenizer.decode(answer.prompt_ids)
        reasoning = None if self._reasoning is None or self._reasoning.is_over(prompt) else self._reasoning
        parser = answer_parser(
            self._tools if schemas else None,
            schemas,
            reasoning,
            reasoning_open=reasoning is not None and reasoning.is_open(prompt),
            channels=self._channels,
        )
        shown = [token_id for token_id in answer.token_ids if token_id not in self._hidden]
        deltas = [*parser.push(self._tokenizer.decode(shown)), *parser.finish()]
        text = "".join(delta.content or "" for delta in deltas)
        return sample_of(text, ended=answer.ended, calls=_calls(deltas))


def _schemas(item: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters of the tools that a row offers, by their names."""
    try:
        sample = read(item, "prompts")
    except BadRow:  # a row that is no prompt offers none
        return {}
    whole = sample.whole if isinstance(sample, Prompt) else None
    tools = whole.tools if isinstance(whole, Conversation) else []
    functions = [tool["function"] for tool in tools]
    return {function["name"]: function.get("parameters") or {} for function in functions}


def _calls(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    """In OpenAI's form, their ids by their order: the same answer is told in the same way each time."""
    calls: list[dict[str, Any]] = []
    for call in (delta.tool_call for delta in deltas if delta.tool_call is not None):
        if call.id is not None:
            function = {"name": call.name or "", "arguments": ""}
            calls.append({"id": f"call_{call.index}", "type": "function", "function": function})
        calls[call.index]["function"]["arguments"] += call.arguments
    return calls
