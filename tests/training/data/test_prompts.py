"""Prompts are found in every layout, with the answer where the set has one, and asked as the chat endpoint asks."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.capabilities import Capabilities
from engines.text.prompt import Conversation, PromptRenderer
from engines.text.tool_formats import find_tool_format
from engines.text.tool_messages import for_template
from tests.server.openai.chat_templates import LLAMA, PLAIN, QWEN
from tests.training.data.tokenizers import CHATML, THINKS_LAST, tokenizer
from training.data import build
from training.data.encode import Encoder, TooLong
from training.data.problems import BadRow
from training.params.sft import SftParams

KIND = {"role": "system", "content": "Be kind."}
SKY = {"role": "user", "content": "Why is the sky blue?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("It scatters light.", "It is paint."))
MORE = {"role": "user", "content": "Why?"}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": "{}"}}
LIMITS = Capabilities(max_model_len=100_000, vocab_size=1000)


def encoded(row: dict[str, Any], template: str = CHATML, limit: int | None = None, **params: Any) -> dict[str, Any]:
    (sample,) = Encoder(SftParams(**params), tokenizer(template), "prompts", limit).encode(row)
    return sample


def asked(messages: list[dict[str, Any]], tools: list[dict[str, Any]], template: str = CHATML) -> list[int]:
    """The prompt of a chat request, as the server makes it."""
    renderer = PromptRenderer(tokenizer(template))
    form = find_tool_format(template, tokenizer(template).get_added_vocab())
    ready, shown = for_template(renderer.messages(messages), tools, form, template)
    return renderer.chat(Conversation(messages=ready, tools=shown), LIMITS).ids


def answer(sample: dict[str, Any]) -> str:
    return tokenizer().decode(sample["completion_ids"]).removesuffix("<|im_end|>\n")


ALONE: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": [KIND, SKY]},
    "TRL, with a solution": {"prompt": [KIND, SKY], "solution": "light"},
    "ms-swift": {"messages": [KIND, SKY], "solution": "light"},
    "ms-swift, query": {"system": "Be kind.", "query": SKY["content"], "solution": "light"},
    "ms-swift, an empty response": {"system": "Be kind.", "query": SKY["content"], "response": ""},
    "OpenAI, reinforcement": {"messages": [KIND, SKY], "reference_answer": {"cause": "light"}},
    "LLaMA-Factory, alpaca": {"system": "Be kind.", "instruction": "Why is the sky blue?", "input": "", "output": ""},
    "LLaMA-Factory, sharegpt": {"conversations": [{"from": "human", "value": SKY["content"]}], "system": "Be kind."},
    "a question": {"question": SKY["content"], "system_prompt": "Be kind."},
    "a prompt with a system column": {"prompt": SKY["content"], "system": "Be kind."},
    "UltraChat": {"data": [SKY["content"]], "system": "Be kind."},
    "an answer that is a bad one": {"messages": [KIND, SKY, BAD], "label": False},
}
ANSWERED: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": [KIND, SKY], "completion": [GOOD]},
    "TRL, preferences": {"prompt": [KIND, SKY], "chosen": [GOOD], "rejected": [BAD]},
    "ms-swift": {"messages": [KIND, SKY, GOOD], "solution": "light"},
    "ms-swift, rejected_response": {"messages": [KIND, SKY, GOOD], "rejected_response": "It is paint."},
    "OpenAI, preferences": {
        "input": {"messages": [KIND, SKY]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]
    },
    "LLaMA-Factory": {"system": "Be kind.", "instruction": SKY["content"], "output": GOOD["content"]},
    "LLaMA-Factory, ranking": {
        "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": SKY["content"]}],
        "chosen": {"from": "gpt", "value": GOOD["content"]}, "rejected": {"from": "gpt", "value": BAD["content"]},
    },
    "openai/gsm8k": {"question": SKY["content"], "answer": GOOD["content"], "system": "Be kind."},
}  # fmt: skip


@pytest.mark.parametrize("row", ALONE.values(), ids=ALONE)
def test_a_prompt_alone_is_asked_as_the_chat_endpoint_asks(row: dict[str, Any]) -> None:
    sample = encoded(row)
    assert sample == {"prompt_ids": asked([KIND, SKY], []), "completion_ids": [], "item": sample["item"]}
    assert json.loads(sample["item"]) == row


@pytest.mark.parametrize("row", [row for name, row in ANSWERED.items() if "ranking" not in name])
def test_an_answer_of_the_set_follows_its_prompt(row: dict[str, Any]) -> None:
    sample = encoded(row)
    assert sample["prompt_ids"] == asked([KIND, SKY], [])
    assert answer(sample) == GOOD["content"]
    assert json.loads(sample["item"]) == row


def test_of_a_conversation_the_last_answer_is_asked_for() -> None:
    sample = encoded({"messages": [SKY, GOOD, MORE, BAD]})
    assert sample["prompt_ids"] == asked([SKY, GOOD, MORE], [])
    assert answer(sample) == BAD["content"]


def test_the_messages_of_a_ranking_are_its_prompt() -> None:
    sample = encoded(ANSWERED["LLaMA-Factory, ranking"])
    assert sample["prompt_ids"] == asked([KIND, SKY], [])


@pytest.mark.parametrize("template", [CHATML, THINKS_LAST, QWEN, PLAIN, LLAMA])
def test_tools_calls_and_results_are_those_of_a_chat_request(template: str) -> None:
    messages: list[dict[str, Any]] = [
        SKY,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_0", "content": "noon"},
    ]
    for row in ({"prompt": messages}, {"messages": messages}, {"messages": [*messages, GOOD]}):
        sample = encoded(row | {"tools": json.dumps([TOOL])}, template)
        assert sample["prompt_ids"] == asked(messages, [TOOL], template)


def test_a_text_is_asked_as_it_is_as_trl_asks_it() -> None:
    ids = tokenizer()("1 + 1 =")["input_ids"]
    assert encoded({"prompt": "1 + 1 ="})["prompt_ids"] == ids
    assert encoded({"text": "1 + 1 ="})["prompt_ids"] == ids
    assert encoded({"prompt": "1 + 1 =", "completion": ""})["completion_ids"] == []
    whole = encoded({"prompt": "1 + 1 =", "completion": " 2"})
    assert whole["prompt_ids"] == ids
    assert tokenizer().decode(whole["completion_ids"]) == " 2</s>"


def test_long_prompts_are_left_out_or_lose_their_beginning() -> None:
    row = {"messages": [SKY]}
    whole = encoded(row)["prompt_ids"]
    with pytest.raises(TooLong, match=f"it has {len(whole)} tokens, and max_length is 9"):
        encoded(row, limit=9)
    assert encoded(row, limit=9, truncation_strategy="left")["prompt_ids"] == whole[-9:]
    with pytest.raises(TooLong, match="nothing is left"):
        encoded(row, limit=9, truncation_strategy="right")  # the end of a prompt is what asks


NO_PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages: is empty"),
    ({"messages": [KIND]}, "messages: there is no message to answer"),
    ({"messages": [GOOD]}, "the answer has no message before it"),
    ({"prompt": ""}, "the row is empty"),
    ({"prompt": 5}, "prompt: must be text or a list of messages, not a number"),
    ({"solution": "light"}, "the fields 'solution' are of no known shape"),
    ({"query": "Look.", "images": ["a.png"]}, "images: only text can be trained"),
]


@pytest.mark.parametrize(("row", "problem"), NO_PROMPTS)
def test_what_asks_nothing_is_refused_with_the_field(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRow) as caught:
        encoded(row)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("way", [{}, {"enable_cache": True}, {"lazy_tokenize": True}, {"streaming": True}])
def test_a_prepared_set_has_prompts_answers_and_items(
    tmp_path: Path, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    rows = [ALONE["ms-swift"], ANSWERED["ms-swift"] | {"extra": {"deep": [1, None]}}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = build(SftParams(dataset=str(file), **way), tokenizer(), learns="prompts").train
    made = sorted((next(pair) for pair in [iter(data)] * 2), key=lambda sample: len(sample["completion_ids"]))
    assert made == [encoded(row) for row in rows]
    assert [json.loads(sample["item"]) for sample in made] == rows


@pytest.mark.parametrize("form", ["ms-swift", "ms-swift, query", "a prompt with a system column"])
def test_a_row_without_unused_columns_is_the_conversation_that_it_asks_with(form: str) -> None:
    row = ALONE[form]
    kept, whole = (json.loads(encoded(row, remove_unused_columns=each)["item"]) for each in (True, False))
    assert whole == row
    assert kept == {"messages": [KIND, SKY]}
