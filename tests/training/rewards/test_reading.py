"""What graders see of an answer is what a server would tell of it."""

from typing import Any

import pytest

from tests.engines.pt.tiny import byte_level_tokenizer
from training.rewards.reading import AnswerReader
from training.rewards.types import Answered

TEMPLATE = (
    "{% if tools %}Tools: {{ tools }}. Call by <tool_call>.{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls }}{% endfor %}<assistant>"
)
THINKS = TEMPLATE + "<think>{# </think> #}"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
ROW: dict[str, Any] = {"messages": [{"role": "user", "content": "Is it cold?"}]}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture
def tokenizer() -> Any:
    made = byte_level_tokenizer()
    made.chat_template = TEMPLATE
    return made


def read(tokenizer: Any, text: str, item: dict[str, Any], prompt: str = "<assistant>") -> dict[str, Any]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    return AnswerReader(tokenizer)(Answered(prompt_ids=prompt_ids, token_ids=ids, text=text, item=item))


def test_calls_of_tools_that_a_row_offers_are_told_in_openais_form(tokenizer: Any) -> None:
    sample = read(tokenizer, "Let me see." + CALL, ROW | {"tools": [TOOL]})
    assert sample["output_text"] == "Let me see."
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert sample["output_tools"] == [{"id": "call_0", "type": "function", "function": function}]
    [choice] = sample["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == sample["output_tools"]


def test_without_tools_in_the_row_nothing_is_a_call(tokenizer: Any) -> None:
    sample = read(tokenizer, CALL, ROW)
    assert (sample["output_text"], sample["output_tools"]) == (CALL, [])


def test_the_same_answer_is_told_in_the_same_way(tokenizer: Any) -> None:
    one, two = (read(tokenizer, CALL + CALL, ROW | {"tools": [TOOL]}) for _ in range(2))
    assert one == two
    assert [call["id"] for call in one["output_tools"]] == ["call_0", "call_1"]


def test_reasoning_is_no_part_of_the_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKS
    sample = read(tokenizer, 'It is north.</think>\n\n{"cold": true}', ROW, prompt="<assistant><think>")
    assert sample["output_json"] == {"cold": True}
