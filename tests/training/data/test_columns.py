"""Every usual shape is read as what it means, and a row that cannot be used is refused with the field at fault."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.columns import read
from training.data.problems import BadRow
from training.data.samples import Conversation, Labelled, Learns, Pair, Prompt, Text

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}
BYE = {"role": "assistant", "content": "Bye"}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": '{"zone": "CET"}'}}

SAME_CONVERSATION: dict[str, dict[str, Any]] = {
    "messages": {"messages": [SYSTEM, HI, HELLO]},
    "messages as JSON text, as in a csv file": {"messages": json.dumps([SYSTEM, HI, HELLO])},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        "system": "Be kind.",
    },
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello", "system": "Be kind."},
    "query and response": {"query": "Hi", "response": "Hello", "history": None, "system": "Be kind."},
}


@pytest.mark.parametrize("row", SAME_CONVERSATION.values(), ids=SAME_CONVERSATION)
def test_conversations_of_every_shape_are_the_same(row: dict[str, Any]) -> None:
    assert read(row, "answers") == Conversation([SYSTEM, HI, HELLO], [])


@pytest.mark.parametrize("answer", ["response", "output", "answer"])
@pytest.mark.parametrize("question", ["query", "question", "prompt", "instruction", "input", "problem"])
def test_a_question_and_its_answer_are_known_by_all_their_names(question: str, answer: str) -> None:
    assert read({question: "Hi", answer: "Hello", "source": "x"}, "answers") == Conversation([HI, HELLO], [])


def test_a_problem_has_a_solution_and_a_prompt_for_rewards_none() -> None:
    row = {"problem": "Hi", "solution": "Hello", "answer": "lo"}
    assert read(row, "answers") == Conversation([HI, HELLO], [])
    assert read(row, "prompts") == Prompt(Conversation([HI], [], context=1))
    assert read({"prompt": "Hi", "answer": "Hello"}, "prompts") == Prompt(Text("Hi", ""))


@pytest.mark.parametrize("row", [{"prompt": "Hi", "input": "Hallo", "output": "Hello"}, {"input": "a", "problem": "b"}])
def test_of_two_questions_none_is_left_out(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="which of the two is the question"):
        read(row | {"response": "Hello"}, "answers")


def test_alpacas_input_follows_the_instruction() -> None:
    sample = read({"instruction": "Translate.", "input": "Hallo", "output": "Hello"}, "answers")
    assert sample == Conversation([{"role": "user", "content": "Translate.\nHallo"}, HELLO], [])


def test_history_comes_first() -> None:
    sample = read({"query": "Hi", "response": "Bye", "history": [["Hi", "Hello"]]}, "answers")
    assert sample == Conversation([HI, HELLO, HI, BYE], [])


def test_weights_and_tools_are_kept() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0}
    result = {"role": "tool", "tool_call_id": "call_0", "content": "noon"}
    row = {"messages": [HI, called, result, HELLO], "tools": [TOOL], "parallel_tool_calls": True}
    kept = {"role": "assistant", "tool_calls": [CALL], "weight": 0}
    assert read(row, "answers") == Conversation([HI, kept, result, HELLO], [TOOL])


def test_sharegpts_calls_and_results_are_openais() -> None:
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": '{"name": "now", "arguments": {"zone": "CET"}}'},
        {"from": "observation", "value": "noon"},
        {"from": "gpt", "value": "Hello"},
    ]
    row = {"conversations": turns, "tools": json.dumps([TOOL["function"]])}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert read(row, "answers") == Conversation([HI, called, {"role": "tool", "content": "noon"}, HELLO], [TOOL])


def test_prompt_and_completion_are_texts_or_messages() -> None:
    assert read({"prompt": "1 + 1 =", "completion": " 2"}, "answers") == Text("1 + 1 =", " 2")
    assert read({"prompt": [HI], "completion": [HELLO]}, "answers") == Conversation([HI, HELLO], [], context=1)
    assert read({"prompt": "[1]", "completion": "{}"}, "answers") == Text("[1]", "{}")
    assert read({"text": "Once upon a time"}, "text") == Text("", "Once upon a time")


PAIR = Pair(Conversation([HI, HELLO], [], context=1), Conversation([HI, BYE], [], context=1))
SAME_PAIR: dict[str, dict[str, Any]] = {
    "openai": {"input": {"messages": [HI]}, "preferred_output": [HELLO], "non_preferred_output": [BYE]},
    "openai, older": {"input": {"messages": [HI]}, "preferred_completion": [HELLO], "non_preferred_completion": [BYE]},
    "ms-swift": {"messages": [HI, HELLO], "rejected_response": "Bye"},
    "ms-swift, flat": {"query": "Hi", "response": "Hello", "rejected_response": "Bye"},
    "trl": {"prompt": [HI], "chosen": [HELLO], "rejected": [BYE]},
    "trl, the prompt within": {"chosen": [HI, HELLO], "rejected": [HI, BYE]},
}


@pytest.mark.parametrize("row", SAME_PAIR.values(), ids=SAME_PAIR)
def test_preferences_of_every_shape_are_the_same(row: dict[str, Any]) -> None:
    assert read(row, "pairs") == PAIR


def test_preferences_may_be_texts() -> None:
    pair = Pair(Text("1 + 1 =", " 2"), Text("1 + 1 =", " 3"))
    assert read({"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}, "pairs") == pair
    assert read({"chosen": "1 + 1 = 2", "rejected": "1 + 1 = 3"}, "pairs") == pair


MARGINS: dict[str, dict[str, Any]] = {
    "TRL's margin": {"margin": 5.5},
    "in a csv file": {"margin": "5.5"},
    "its scores": {"score_chosen": 8, "score_rejected": 2.5},
    "their scores": {"chosen_score": 8.0, "rejected_score": 2.5},
}


@pytest.mark.parametrize("columns", MARGINS.values(), ids=MARGINS)
def test_a_pair_has_the_margin_that_the_set_tells(columns: dict[str, Any]) -> None:
    for row in SAME_PAIR.values():
        assert read(row | columns, "pairs") == replace(PAIR, margin=5.5)


@pytest.mark.parametrize("label", [True, "true", 1])
def test_labelled_answers(label: Any) -> None:
    assert read({"messages": [HI, HELLO], "label": label}, "labels") == Labelled(PAIR.chosen, True)


A_MESSAGE_OF_ANOTHER_KIND = "must be one of system, developer, user, assistant, tool, not "
BAD: list[tuple[Learns, Any, str]] = [
    ("answers", [1], "a row must be a JSON object, not a list"),
    ("answers", {}, "the row is empty"),
    ("answers", {"question": "Hi"}, "the fields 'question' are of no known shape"),
    ("answers", {"messages": "Hi"}, "messages: must be a list, not text"),
    ("answers", {"messages": []}, "messages: is empty"),
    ("answers", {"messages": [HI]}, "messages: there is no message of the assistant to learn from"),
    ("answers", {"messages": [HI, HELLO, HI]}, "messages[2].role: the last message must be the assistant's"),
    ("answers", {"messages": ["Hi", HELLO]}, "messages[0]: must be an object with 'role' and 'content', not text"),
    ("answers", {"messages": [{"role": "bot", "content": ""}]}, f"messages[0].role: {A_MESSAGE_OF_ANOTHER_KIND}'bot'"),
    ("answers", {"messages": [{"content": "Hi"}]}, f"messages[0].role: {A_MESSAGE_OF_ANOTHER_KIND}null"),
    ("answers", {"messages": [{"role": "user"}, HELLO]}, "messages[0].content: is missing"),
    ("answers", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content: must be text, not a number"),
    (
        "answers",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type: must be 'text', not 'image_url': only text can be trained",
    ),
    ("answers", {"messages": [HI, {**HELLO, "weight": 0.5}]}, "messages[1].weight: must be 0 or 1, not 0.5"),
    ("answers", {"messages": [{**HI, "weight": 1}, HELLO]},
         "messages[0].weight: only messages of the assistant have one"),
    ("answers", {"messages": [HI, {**HELLO, "weight": 0}]}, "messages: every message of the assistant has weight 0"),
    ("answers", {"messages": [HI, HELLO], "tools": [{"type": "code"}]},
         "tools[0].type: must be 'function', not 'code'"),
    (
        "answers",
        {"messages": [HI, {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": 3}}]}]},
        "messages[1].tool_calls[0].function.arguments: must be JSON as text, not a number",
    ),
    ("answers", {"conversations": [{"from": "dog", "value": ""}]}, "conversations[0].from: must be one of"),
    ("answers", {"instruction": "Hi", "output": 7}, "output: must be text, not a number"),
    ("answers", {"query": "Hi", "response": "x", "history": [["a"]]}, "history[0]: must be a list of two texts"),
    ("answers", {"prompt": "Hi", "completion": ""}, "completion: is empty"),
    ("answers", SAME_PAIR["openai"], "these are preferences"),
    ("answers", {"query": "<image>", "response": "x", "images": ["a.png"]}, "images: only text can be trained"),
    ("text", {"text": ""}, "text: is empty"),
    ("pairs", {"messages": [HI, HELLO]}, "there is no rejected answer to compare with"),
    ("pairs", {**SAME_PAIR["openai"], "input": "Hi"}, "input: must be an object with 'messages', not text"),
    ("pairs", {**SAME_PAIR["openai"], "input": {"messages": []}}, "input.messages: is empty"),
    ("pairs", {**SAME_PAIR["openai"], "preferred_output": [HI]},
     "preferred_output: there is no message of the assistant"),
    ("pairs", SAME_PAIR["trl"] | {"margin": "much"}, "margin: must be a number, not 'much'"),
    ("pairs", SAME_PAIR["trl"] | {"chosen_score": 1, "rejected_score": []}, "rejected_score: must be a number, not []"),
    ("labels", {"messages": [HI, HELLO]}, "label: there is none"),
    ("labels", {"messages": [HI, HELLO], "label": "maybe"}, "label: must be true or false, not 'maybe'"),
]  # fmt: skip


@pytest.mark.parametrize(("learns", "row", "problem"), BAD)
def test_what_cannot_be_used_is_refused_with_the_field(learns: Learns, row: Any, problem: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row, learns)
    assert str(caught.value).startswith(problem)


NAMES = [
    "messages", "conversations", "instruction", "input", "output", "query", "response", "prompt", "completion", "text",
    "chosen", "rejected", "preferred_output", "non_preferred_output", "rejected_response", "label", "history", "system",
    "tools", "role", "content", "from", "value", "weight", "tool_calls", "function", "name", "arguments", "type",
    "margin",
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(0, 1) | st.sampled_from(["", "user", "assistant", "gpt", "[{}]", "{"])
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=8), st.sampled_from(get_args(Learns)))
def test_whatever_a_row_holds_it_is_read_or_refused(row: dict[str, Any], learns: Learns) -> None:
    with suppress(BadRow):
        read(row, learns)
