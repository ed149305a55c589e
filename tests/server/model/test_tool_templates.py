"""With the chat templates of well-known families: tools, calls and results are shown to the model, and what the
template writes for a call is read back as that call."""

import json
from typing import Any

import pytest

from engines.text.prompt import Conversation, PromptRenderer
from engines.text.tool_messages import for_template
from server.model.output import OutputFormat, find_output_format
from server.model.tools import read_tools
from tests.server.openai.outputs import calls, parse
from tests.training.data.families import family

FORMS = {
    "gptoss": "openai", "deepseekv3": "deepseek_v3", "deepseek_r1_distill": "deepseek_v3", "qwen2_5": "hermes",
    "qwen3": "hermes", "qwen3_5_think": "qwen3_coder", "nemotron_3_nano": "qwen3_coder", "glm4moe": "glm45",
    "gemma4": "gemma4", "lfm2_2_5": "lfm2", "llama3_1": "llama3_json", "llama3_2": "llama3_json", "gemma3": "hermes",
    "phi3": "hermes",
}  # fmt: skip
"""TRL's template -> the form that is found for it."""
ARGUMENTS = {"city": "Rome", "days": 3, "stops": ["Forum, at noon", "Monti"]}
TOOLS = [{"type": "function", "function": {"name": "plan_trip", "description": "Plan a trip", "parameters": {
    "type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"},
        "stops": {"type": "array", "items": {"type": "string"}}}}}}]  # fmt: skip
CALL = {
    "id": "call_a",
    "type": "function",
    "function": {"name": "plan_trip", "arguments": json.dumps(ARGUMENTS)},
}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Plan a trip."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_a", "content": '{"booked": true}'},
]


@pytest.mark.parametrize("name", FORMS)
def test_calls_are_read_as_the_template_writes_them(name: str) -> None:
    tokenizer = family(name).tokenizer
    renderer = PromptRenderer(tokenizer)
    form = find_output_format(renderer.template, tokenizer.get_added_vocab()).tools
    assert form is not None and form.name == FORMS[name]

    def rendered(count: int, *, prompt: bool) -> str:
        ready, shown = for_template(renderer.messages(MESSAGES[:count]), TOOLS, form, renderer.template)
        return renderer.render(Conversation(messages=ready, tools=shown, add_generation_prompt=prompt))

    prompt, called = rendered(1, prompt=True), rendered(2, prompt=False)
    assert "plan_trip" in prompt
    assert "booked" in rendered(3, prompt=True)
    same = next((i for i, (one, two) in enumerate(zip(prompt, called, strict=False)) if one != two), len(prompt))
    plan = OutputFormat(reasoning=None, tools=form).plan(read_tools(TOOLS), None, prompt)
    (found,) = calls(parse(plan.parser(), [called[same:]]))
    assert (found[0], json.loads(found[1])) == ("plan_trip", ARGUMENTS)
