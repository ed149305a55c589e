"""Rows as well-known data sets write them mean what their makers meant: TRL's own preparation of them, or of their
meaning in TRL's words, gives the same token ids; a column that changes what a row means is honoured or refused."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from trl import DPOTrainer, KTOTrainer
from trl.data_utils import maybe_extract_prompt

from tests.server.openai.chat_templates import QWEN
from tests.training.data.tokenizers import CHATML, tokenizer
from training.data.columns import read
from training.data.encode import Encoder
from training.data.problems import BadRow
from training.data.samples import Conversation, Learns, Text
from training.params.sft import SftParams


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


KIND = turn("system", "Be kind.")
SKY = turn("user", "Why is the sky blue?")
GOOD, BAD = turn("assistant", "It scatters light."), turn("assistant", "It is paint.")
MORE = turn("user", "Why?")
FAR = turn("assistant", "Short waves scatter most.")
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
FUNCTION = TOOL["function"]
CALL = {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": '{"zone": "CET"}'}}


def by_trl(row: dict[str, Any], trainer: Any, template: str) -> dict[str, Any]:
    """What TRL's own trainer trains on."""
    given = maybe_extract_prompt(row) if "chosen" in row else row
    stub = SimpleNamespace(_tokenizer=tokenizer(template), calculate_KL=False, desirable_weight=1, undesirable_weight=1)
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    prepared: dict[str, Any] = trainer._prepare_dataset(
        stub, Dataset.from_list([given]), tokenizer(template), args, "train"
    )[0]
    return {name: prepared[name] for name in prepared if name.endswith("_ids") or name == "label"}


def by_us(row: dict[str, Any], learns: Learns, template: str = CHATML) -> dict[str, Any]:
    (sample,) = Encoder(SftParams(), tokenizer(template), learns, None).encode(row)
    return sample


def scored(chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, "score_chosen": 8.0, "score_rejected": 2.5}


STANDARD = {"prompt": [SKY], "chosen": [GOOD], "rejected": [BAD]}
IMPLICIT = {"chosen": [SKY, GOOD], "rejected": [SKY, BAD]}
TEXTS = {"prompt": "The sky is", "chosen": " blue.", "rejected": " paint."}
WITH_SYSTEM = {"prompt": [KIND, SKY], "chosen": [GOOD], "rejected": [BAD]}

PREFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        {"source": "x", "prompt": SKY["content"], "chosen": [SKY, GOOD], "chosen-rating": 5.0,
         "rejected": [SKY, BAD], "rejected-rating": 2.0},
        IMPLICIT | {"prompt": SKY["content"]},
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        {"conversation": [{"input": SKY["content"], "output": GOOD["content"]}], "prompt": "as one text",
         "chosen": [SKY, GOOD, MORE, FAR], "rejected": [SKY, GOOD, MORE, BAD], "rating_chosen": 5},
        {"chosen": [SKY, GOOD, MORE, FAR], "rejected": [SKY, GOOD, MORE, BAD]},
    ),
    "argilla/dpo-mix-7k": ({"dataset": "x", **scored([KIND, SKY, GOOD], [KIND, SKY, BAD])}, WITH_SYSTEM),
    "mlabonne/orpo-dpo-mix-40k": (
        {"source": "x", "prompt": SKY["content"], "question": SKY["content"], **IMPLICIT}, IMPLICIT
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {"prompt": SKY["content"], "prompt_id": "1", "messages": [SKY, GOOD], **scored([SKY, GOOD], [SKY, BAD])},
        IMPLICIT | {"prompt": SKY["content"]},
    ),
    "Intel/orca_dpo_pairs": (
        {"system": KIND["content"], "question": SKY["content"], "chosen": GOOD["content"], "rejected": BAD["content"]},
        WITH_SYSTEM,
    ),
    "Intel/orca_dpo_pairs without a system text": (
        {"system": "", "question": SKY["content"], "chosen": GOOD["content"], "rejected": BAD["content"]}, STANDARD
    ),
    "jondurbin/truthy-dpo-v0.1": (
        {"id": "1", "system": KIND["content"], "prompt": SKY["content"], "chosen": GOOD["content"],
         "rejected": BAD["content"]},
        WITH_SYSTEM,
    ),
    "answers alone, the prompt a text": (
        {"prompt": SKY["content"], "chosen": [GOOD], "rejected": [BAD]}, STANDARD
    ),
    "LLaMA-Factory, alpaca": (
        {"instruction": "Why is", "input": "the sky blue?", "chosen": GOOD["content"], "rejected": BAD["content"]},
        STANDARD | {"prompt": [turn("user", "Why is\nthe sky blue?")]},
    ),
    "LLaMA-Factory, sharegpt": (
        {"conversations": [{"from": "human", "value": SKY["content"]}],
         "chosen": {"from": "gpt", "value": GOOD["content"]}, "rejected": {"from": "gpt", "value": BAD["content"]}},
        STANDARD,
    ),
    "ms-swift, rejected_response": ({"messages": [KIND, SKY, GOOD], "rejected_response": BAD["content"]}, WITH_SYSTEM),
    "ms-swift, rejected_messages": (
        {"messages": [SKY, GOOD, MORE, FAR], "rejected_messages": [SKY, BAD, MORE, GOOD]},
        {"chosen": [SKY, GOOD, MORE, FAR], "rejected": [SKY, BAD, MORE, GOOD]},
    ),
    "ms-swift, rejected_messages with a system column": (
        {"messages": [SKY, GOOD], "rejected_messages": [SKY, BAD], "system": KIND["content"]}, WITH_SYSTEM
    ),
    "ms-swift, messages as the rejected response": (
        {"messages": [SKY, GOOD, MORE, FAR], "rejected_response": [BAD]},
        {"prompt": [SKY, GOOD, MORE], "chosen": [FAR], "rejected": [BAD]},
    ),
    "TRL": (STANDARD, STANDARD),
    "TRL, several messages after the prompt": (
        {"prompt": [SKY], "chosen": [GOOD, MORE, FAR], "rejected": [BAD, MORE, GOOD]},
        {"prompt": [SKY], "chosen": [GOOD, MORE, FAR], "rejected": [BAD, MORE, GOOD]},
    ),
    "TRL, implicit": (IMPLICIT, IMPLICIT),
    "TRL, texts": (TEXTS, TEXTS),
    "Anthropic/hh-rlhf": (
        scored("\n\nHuman: Why?\n\nAssistant: light", "\n\nHuman: Why?\n\nAssistant: paint"),
        {"chosen": "\n\nHuman: Why?\n\nAssistant: light", "rejected": "\n\nHuman: Why?\n\nAssistant: paint"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "meant"), PREFERENCES.values(), ids=PREFERENCES)
def test_preferences_have_the_ids_that_trl_makes(row: dict[str, Any], meant: dict[str, Any]) -> None:
    ours = by_us(row, "pairs")
    assert ours == by_trl(meant, DPOTrainer, CHATML) | {"margin": 8.0 - 2.5 if "score_chosen" in row else 0.0}


CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
NOON = turn("tool", "noon", tool_call_id="call_0")
WRITTEN_CALL = '{"name": "now", "arguments": {"zone": "CET"}}'
WITH_TOOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "TRL": (STANDARD | {"tools": json.dumps([TOOL])}, STANDARD | {"tools": [TOOL]}),
    "TRL, a call is better": (
        {"prompt": [SKY], "chosen": [CALLING], "rejected": [BAD], "tools": [TOOL]},
        {"prompt": [SKY], "chosen": [CALLING], "rejected": [BAD], "tools": [TOOL]},
    ),
    "TRL, implicit, what a call gave": (
        {"chosen": [SKY, CALLING, NOON, GOOD], "rejected": [SKY, CALLING, NOON, BAD], "tools": [TOOL]},
        {"prompt": [SKY, CALLING, NOON], "chosen": [GOOD], "rejected": [BAD], "tools": [TOOL]},
    ),
    "OpenAI": (
        {"input": {"messages": [SKY], "tools": [TOOL], "parallel_tool_calls": True}, "preferred_output": [CALLING],
         "non_preferred_output": [BAD]},
        {"prompt": [SKY], "chosen": [CALLING], "rejected": [BAD], "tools": [TOOL]},
    ),
    "ms-swift": (
        {"messages": [SKY, turn("tool_call", WRITTEN_CALL), turn("tool_response", "noon"), GOOD],
         "rejected_response": BAD["content"], "tools": json.dumps([TOOL])},
        {"prompt": [SKY, CALLING, NOON], "chosen": [GOOD], "rejected": [BAD], "tools": [TOOL]},
    ),
    "LLaMA-Factory": (
        {"conversations": [{"from": "human", "value": SKY["content"]},
                           {"from": "function_call", "value": WRITTEN_CALL},
                           {"from": "observation", "value": "noon"}],
         "chosen": {"from": "gpt", "value": GOOD["content"]}, "rejected": {"from": "gpt", "value": BAD["content"]},
         "tools": json.dumps([FUNCTION])},
        {"prompt": [SKY, CALLING, NOON], "chosen": [GOOD], "rejected": [BAD], "tools": [TOOL]},
    ),
}  # fmt: skip


def for_trl(row: dict[str, Any]) -> dict[str, Any]:
    """Arguments as an object, as TRL has them, and messages with no columns but their own."""

    def ready(message: dict[str, Any]) -> dict[str, Any]:
        calls = [
            call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
            for call in message.get("tool_calls", [])
        ]
        return message | ({"tool_calls": calls} if calls else {})

    return {
        name: [ready(message) for message in value] if isinstance(value, list) and name != "tools" else value
        for name, value in row.items()
    }


@pytest.mark.parametrize(("row", "meant"), WITH_TOOLS.values(), ids=WITH_TOOLS)
def test_the_tools_and_calls_of_preferences_are_trls(row: dict[str, Any], meant: dict[str, Any]) -> None:
    assert by_us(row, "pairs", QWEN) == by_trl(for_trl(meant), DPOTrainer, QWEN) | {"margin": 0.0}


JUDGED: dict[str, tuple[dict[str, Any], bool]] = {
    "trl-lib/kto-mix-14k": ({"prompt": [KIND, SKY], "completion": [GOOD], "label": True}, True),
    "ms-swift": ({"messages": [KIND, SKY, GOOD], "label": False}, False),
    "LLaMA-Factory": (
        {"instruction": SKY["content"], "input": "", "output": GOOD["content"], "system": "Be kind.", "kto_tag": True},
        True,
    ),
    "LLaMA-Factory, sharegpt": (
        {"conversations": [{"from": "human", "value": SKY["content"]}, {"from": "gpt", "value": GOOD["content"]}],
         "system": "Be kind.", "kto_tag": False},
        False,
    ),
    "OpenAI's messages in a csv file": ({"messages": json.dumps([KIND, SKY, GOOD]), "label": "true"}, True),
}  # fmt: skip


@pytest.mark.parametrize(("row", "good"), JUDGED.values(), ids=JUDGED)
def test_judged_answers_have_the_ids_that_trl_makes(row: dict[str, Any], good: bool) -> None:
    meant = {"prompt": [KIND, SKY], "completion": [GOOD], "label": good}
    assert by_us(row, "labels") == by_trl(meant, KTOTrainer, CHATML) | {"label": good}


def test_a_judged_answer_of_several_messages_is_trls() -> None:
    row = {"prompt": [SKY], "completion": [GOOD, MORE, FAR], "label": True}
    assert by_us(row, "labels") == by_trl(row, KTOTrainer, CHATML) | {"label": True}


@pytest.mark.parametrize(
    ("row", "template"),
    [
        ({"prompt": "The sky is", "completion": " blue.", "label": False}, CHATML),
        ({"prompt": [SKY], "completion": [CALLING], "label": True, "tools": [TOOL]}, QWEN),
        ({"prompt": [SKY, CALLING, NOON], "completion": [GOOD], "label": True, "tools": [TOOL]}, QWEN),
    ],
)
def test_judged_texts_and_calls_are_trls(row: dict[str, Any], template: str) -> None:
    assert by_us(row, "labels", template) == by_trl(for_trl(row), KTOTrainer, template) | {"label": row["label"]}


ASKED_AND_ANSWERED: dict[str, dict[str, Any]] = {
    "messages, the system message beside them": {"messages": [SKY, GOOD], "system": "Be kind."},
    "messages, the same system message twice": {"messages": [KIND, SKY, GOOD], "system": "Be kind."},
    "HuggingFaceH4/ultrachat_200k": {"prompt": SKY["content"], "prompt_id": "1", "messages": [KIND, SKY, GOOD]},
    "teknium/OpenHermes-2.5": {
        "conversations": [{"from": "human", "value": SKY["content"]}, {"from": "gpt", "value": GOOD["content"]}],
        "system_prompt": "Be kind.", "source": "x", "category": None,
    },
    "Open-Orca/OpenOrca": {
        "id": "1", "system_prompt": "Be kind.", "question": SKY["content"], "response": GOOD["content"]
    },
    "ms-swift's sharegpt": {
        "system": "Be kind.", "conversation": [{"human": SKY["content"], "assistant": GOOD["content"]}]
    },
    "stingning/ultrachat": {"id": "1", "data": [SKY["content"], GOOD["content"]], "system": "Be kind."},
    "tatsu-lab/alpaca": {
        "instruction": SKY["content"], "input": "", "output": GOOD["content"], "text": "all of it", "system": "Be kind."
    },
    "OpenAI, a refusal": {"messages": [KIND, SKY, {"role": "assistant", "content": None, "refusal": GOOD["content"]}]},
    "a category that is called label": {"messages": [KIND, SKY, GOOD], "label": 7},
}  # fmt: skip


@pytest.mark.parametrize("row", ASKED_AND_ANSWERED.values(), ids=ASKED_AND_ANSWERED)
def test_a_system_message_and_an_answer_are_found_in_every_layout(row: dict[str, Any]) -> None:
    assert read(row, "answers") == Conversation([KIND, SKY, GOOD], [])


def test_a_prompt_with_a_system_column_is_a_conversation() -> None:
    row = {"prompt": SKY["content"], "completion": GOOD["content"], "system": "Be kind."}
    assert read(row, "answers") == Conversation([KIND, SKY, GOOD], [], context=2)
    assert read(row | {"system": ""}, "answers") == Conversation([SKY, GOOD], [], context=1)
    assert read({"prompt": "The sky is", "completion": " blue"}, "answers") == Text("The sky is", " blue")


CALLED = [SKY, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
TOLD_OF_TOOLS: dict[str, dict[str, Any]] = {
    "OpenAI": {"messages": CALLED, "tools": [TOOL]},
    "JSON text": {"messages": CALLED, "tools": json.dumps([TOOL])},
    "a list of JSON texts": {"messages": CALLED, "tools": [json.dumps(TOOL)]},
    "functions alone": {"messages": CALLED, "tools": [FUNCTION]},
    "OpenAI's functions": {
        "messages": [SKY, {"role": "assistant", "content": None, "function_call": CALL["function"]}],
        "functions": [FUNCTION],
    },
    "glaive, in ShareGPT's turns": {
        "conversations": [
            {"from": "human", "value": SKY["content"]},
            {"from": "function_call", "value": '{"name": "now", "arguments": {"zone": "CET"}}'},
        ],
        "tools": json.dumps([FUNCTION]),
    },
    "Salesforce/xlam-function-calling-60k": {
        "query": SKY["content"], "answers": '[{"name": "now", "arguments": {"zone": "CET"}}]',
        "tools": json.dumps([FUNCTION]),
    },
    "ms-swift's agents": {
        "messages": [SKY, turn("tool_call", '{"name": "now", "arguments": {"zone": "CET"}}')],
        "tools": json.dumps([TOOL]),
    },
}  # fmt: skip


@pytest.mark.parametrize("row", TOLD_OF_TOOLS.values(), ids=TOLD_OF_TOOLS)
def test_tools_and_calls_are_found_in_every_place(row: dict[str, Any]) -> None:
    sample = read(row, "answers")
    assert isinstance(sample, Conversation)
    assert sample.tools == [TOOL]
    assert [{"content": "", **message} for message in sample.messages] == CALLED
    assert '"now"' in tokenizer(QWEN).decode(by_us(row, "answers", QWEN)["input_ids"])


def test_tools_of_the_system_message_are_the_conversations() -> None:
    for name, tools in (("tools", [TOOL]), ("functions", json.dumps([FUNCTION]))):
        sample = read({"messages": [KIND | {name: tools}, *CALLED]}, "answers")
        assert sample == Conversation([KIND, *CALLED], [TOOL])


def test_calls_and_results_in_a_row_are_one_message_and_several() -> None:
    call = '{"name": "now", "arguments": {"zone": "CET"}}'
    turns = [SKY, turn("tool_call", call), turn("tool_call", call), turn("tool_response", "noon"), GOOD]
    sample = read({"messages": turns}, "answers")
    assert isinstance(sample, Conversation)
    assert sample.messages[1]["tool_calls"] == [CALL, {**CALL, "id": "call_1"}]
    assert sample.messages[2:] == [turn("tool", "noon"), GOOD]
    before_tools = [SKY, turn("function", "noon", name="now"), GOOD]
    assert read({"messages": before_tools}, "answers") == Conversation(
        [SKY, turn("tool", "noon", name="now"), GOOD], []
    )


def answers_of(row: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    """The answers that are learned."""
    made = tokenizer()
    (sample,) = Encoder(SftParams(**params), made, "answers", None).encode(row)
    learned = [token if label >= 0 else -1 for token, label in zip(sample["input_ids"], sample["labels"], strict=True)]
    return [each for each in (GOOD, FAR) if _within(made.encode(each["content"], add_special_tokens=False), learned)]


def _within(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole)))


def test_loss_says_what_is_learned_as_weight_does() -> None:
    def row(first: Any, second: Any) -> dict[str, Any]:
        return {"messages": [SKY | {"loss": False}, GOOD | first, MORE, FAR | second]}

    assert answers_of(row({}, {})) == [GOOD, FAR]
    assert answers_of(row({"loss": False}, {})) == [FAR]
    assert answers_of(row({"loss": True}, {"loss": False})) == [GOOD]
    assert answers_of(row({"loss": None}, {}), loss_scale="last_round") == [FAR]
    assert answers_of(row({"loss": True}, {}), loss_scale="last_round") == [GOOD, FAR]
    assert answers_of(row({"weight": 1}, {"weight": 0}), loss_scale="last_round") == [GOOD]


NOT_TO_BE_HONOURED: list[tuple[Learns, dict[str, Any], str]] = [
    ("answers", {"messages": [KIND, SKY, GOOD], "system": "Be rude."}, "system: differs from the system message"),
    ("answers", {"messages": [SKY, GOOD], "history": [["a", "b"]]}, "history: belongs into messages"),
    ("answers", {"text": "Once", "system": "Be kind."}, "system: plain text has no place for it"),
    ("answers", {"prompt": "a", "completion": "b", "tools": [TOOL]}, "tools: plain text has no place for it"),
    ("answers", {"messages": [SKY, GOOD], "documents": ["a"]}, "documents: "),
    ("answers", {"messages": [SKY, GOOD], "chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs: "),
    ("answers", {"messages": [SKY, GOOD], "label": False}, "label: it says that the answer is a bad one"),
    ("answers", {"messages": [SKY | {"loss": True}, GOOD]}, "messages[0].loss: only messages of the assistant"),
    ("answers", {"messages": [SKY, GOOD | {"loss": 0.5}]}, "messages[1].loss: must be true or false"),
    ("answers", {"messages": [SKY, GOOD | {"loss": False, "weight": 1}]}, "messages[1].loss: contradicts weight"),
    ("answers", {"messages": [SKY, GOOD | {"audio": {"id": "a"}}]}, "messages[1].audio: only text can be trained"),
    ("answers", {"messages": [SKY, GOOD | {"refusal": "no"}]}, "messages[1].refusal: stands beside content"),
    ("answers", {"messages": [KIND | {"tools": [TOOL]}, SKY, GOOD], "tools": [{"name": "other"}]},
         "messages[0].tools: differs from tools"),
    ("answers", {"system": "SYSTEM: tools", "chat": "USER: Hi"}, "the fields 'chat', 'system' are of no known shape"),
    ("pairs", {"messages": [SKY, GOOD], "chosen": "a", "rejected": "b"}, "messages: must end before the answers"),
    ("pairs", {"prompt": [SKY], "chosen": [GOOD | {"weight": 0}, MORE, FAR], "rejected": [BAD]}, "an answer that is"),
]  # fmt: skip


@pytest.mark.parametrize(("learns", "row", "problem"), NOT_TO_BE_HONOURED)
def test_what_cannot_be_honoured_is_refused_by_name(learns: Learns, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row, learns)
    assert str(caught.value).startswith(problem)
