"""Token ids are those that the chat endpoint sees and makes, and only what is to be learned has a label."""

from types import SimpleNamespace
from typing import Any

import pytest

from engines.capabilities import Capabilities
from engines.text.prompt import Conversation, PromptRenderer
from engines.text.tool_formats import find_tool_format
from engines.text.tool_messages import for_template
from engines.text.tool_prompts import with_tools_prompt
from tests.server.openai.chat_templates import LLAMA, PLAIN, QWEN
from tests.training.data.tokenizers import CHATML, MERGES, THINKS_LAST, tokenizer
from training.data.encode import IGNORED, Encoder, TooLong
from training.data.problems import BadRow
from training.data.samples import Learns
from training.params.sft import SftParams

LIMITS = Capabilities(max_model_len=100_000, vocab_size=1000)
CALL = {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": '{"zone": "CET"}'}}
OTHER = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TWO_ROUNDS = [turn("user", "one"), turn("assistant", "uno"), turn("user", "two"), turn("assistant", "dos")]


def encoder(
    template: str | None = CHATML, learns: Learns = "answers", limit: int | None = None, **params: Any
) -> Encoder:
    return Encoder(SftParams(**params), tokenizer(template), learns, limit)


def learned(sample: dict[str, Any]) -> list[str]:
    """The runs of learned tokens, as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(sample["input_ids"], sample["labels"], strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED and runs[-1]:
            runs.append([])
        elif label != IGNORED:
            runs[-1].append(token)
    return [tokenizer().decode(run) for run in runs if run]


async def endpoint(messages: list[dict[str, Any]], tools: list[dict[str, Any]], template: str) -> list[int]:
    """The prompt of a chat request, as the server makes it."""
    renderer = PromptRenderer(tokenizer(template))
    ready, shown = for_template(renderer.messages(messages), tools, find_tool_format(template, {}), template)
    return (renderer.chat(Conversation(messages=ready, tools=shown), LIMITS)).ids


@pytest.mark.parametrize("template", [CHATML, THINKS_LAST, MERGES, QWEN, PLAIN])
async def test_an_answer_follows_the_prompt_that_the_chat_endpoint_makes(template: str) -> None:
    prompt = await endpoint(TWO_ROUNDS[:3], [], template)
    sample = encoder(template, loss_scale="last_round").encode({"messages": TWO_ROUNDS})[0]
    assert sample["input_ids"][: len(prompt)] == prompt
    assert sample["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert all(label != IGNORED for label in sample["labels"][len(prompt) :])


async def test_an_answer_that_would_join_the_prompts_last_token_does_not() -> None:
    messages = [turn("user", "the "), turn("assistant", "ick brown")]
    ids, prompt = (tokenizer().encode(text, add_special_tokens=False) for text in ("the quick brown", "the qu"))
    assert ids[: len(prompt)] != prompt, "the tokenizer has a token for it"
    (sample,) = encoder(MERGES).encode({"messages": messages})
    assert sample["input_ids"][: len(prompt)] == await endpoint(messages[:1], [], MERGES) == prompt
    assert learned(sample) == ["ick brown</s>"]


@pytest.mark.parametrize("template", [QWEN, PLAIN, LLAMA])
async def test_tools_are_shown_as_the_chat_endpoint_shows_them(template: str) -> None:
    question = [turn("user", "What time is it?")]
    row = {"messages": [*question, {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]}
    sample = encoder(template).encode(row)[0]
    start = next(i for i, label in enumerate(sample["labels"]) if label != IGNORED)
    prompt = await endpoint(question, [TOOL], template)
    if template is LLAMA:  # it writes the answer's header whether an answer is asked for or not
        assert sample["input_ids"][:start] == prompt[:start]
    else:
        assert sample["input_ids"][:start] == prompt
    assert '"zone": "CET"' in learned(sample)[0]


@pytest.mark.parametrize(
    ("name", "written", "result"),
    [
        ("react_en", '\nAction: now\nAction Input: {"zone": "CET"}', "Observation: noon"),
        ("toolbench", '\nAction: now\nAction Input: {"zone": "CET"}', "Observation: noon"),
        ("glm4", '<|assistant|>now\n{"zone": "CET"}', "<|observation|>\nnoon"),
    ],
)
@pytest.mark.parametrize("template", [QWEN, PLAIN])
async def test_tools_are_told_of_by_name_as_the_chat_endpoint_tells_of_them(
    template: str, name: str, written: str, result: str
) -> None:
    question = [turn("user", "What time is it?")]
    said = {"role": "assistant", "content": "Thought: I have to look.", "tool_calls": [CALL]}
    rows = [*question, said, turn("tool", "noon", tool_call_id="call_0"), turn("assistant", "Final Answer: Noon.")]
    (sample,) = encoder(template, tools_prompt=name).encode({"messages": rows, "tools": [TOOL]})
    start = next(i for i, label in enumerate(sample["labels"]) if label != IGNORED)
    told = with_tools_prompt(template, name)
    assert sample["input_ids"][:start] == await endpoint(question, [TOOL], told)
    assert [text.partition("<|im_end|>")[0] for text in learned(sample)] == [
        f"Thought: I have to look.{written}",
        "Final Answer: Noon.",
    ]
    assert result in tokenizer().decode(sample["input_ids"])


def test_calls_that_a_template_takes_one_at_a_time_are_learned_all_the_same() -> None:
    messages = [
        turn("user", "When?"),
        {"role": "assistant", "tool_calls": [CALL, OTHER]},
        turn("tool", "noon", tool_call_id="call_0"),
        turn("tool", "eleven", tool_call_id="call_1"),
        turn("assistant", "Noon."),
    ]
    texts = "".join(
        "".join(learned(sample)) for sample in encoder(QWEN).encode({"messages": messages, "tools": [TOOL]})
    )
    assert all(part in texts for part in ("CET", "UTC", "Noon."))


def test_every_answer_is_learned_by_default() -> None:
    (sample,) = encoder().encode({"messages": TWO_ROUNDS})
    assert learned(sample) == ["uno<|im_end|>\n", "dos<|im_end|>\n"]


def test_loss_scales() -> None:
    last = encoder(loss_scale="last_round").encode({"messages": TWO_ROUNDS})[0]
    whole = encoder(loss_scale="all").encode({"messages": TWO_ROUNDS})[0]
    assert learned(last) == ["dos<|im_end|>\n"]
    assert whole["labels"] == whole["input_ids"] == last["input_ids"]


@pytest.mark.parametrize(
    ("loss_scale", "expected"),
    [
        ("default", ["dos<|im_end|>\n"]),
        ("all", ["<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
                 "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\ndos<|im_end|>\n"]),
    ],
)  # fmt: skip
def test_an_answer_of_weight_0_is_not_learned(loss_scale: str, expected: list[str]) -> None:
    messages = [TWO_ROUNDS[0], {**TWO_ROUNDS[1], "weight": 0}, *TWO_ROUNDS[2:]]
    (sample,) = encoder(loss_scale=loss_scale).encode({"messages": messages})
    assert learned(sample) == expected


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_of_a_first_message_of_the_assistant_the_words_are_learned(system: str | None) -> None:
    (sample,) = encoder(system=system).encode({"messages": [turn("assistant", "Welcome"), *TWO_ROUNDS[:2]]})
    assert learned(sample) == ["Welcome<|im_end|>\n", "uno<|im_end|>\n"]


def test_what_is_rendered_in_another_way_later_is_learned_in_a_sample_of_its_own() -> None:
    last, first = encoder(THINKS_LAST).encode({"messages": TWO_ROUNDS})
    assert learned(last) == ["<think></think>dos<|im_end|>\n"]
    assert learned(first) == ["<think></think>uno<|im_end|>\n"]
    assert "two" not in tokenizer().decode(first["input_ids"])


def test_the_system_message_of_the_parameters_opens_conversations_that_bring_none() -> None:
    decoded = [
        tokenizer().decode(encoder(system="Be kind.").encode({"messages": messages})[0]["input_ids"])
        for messages in (TWO_ROUNDS, [turn("system", "Be brief."), *TWO_ROUNDS])
    ]
    assert "Be kind." in decoded[0]
    assert "Be kind." not in decoded[1]


def test_without_the_chat_template_texts_follow_one_another_and_end() -> None:
    (sample,) = encoder(use_chat_template=False).encode({"messages": TWO_ROUNDS})
    assert tokenizer().decode(sample["input_ids"]) == "<s>oneunotwodos</s>"
    assert learned(sample) == ["uno", "dos</s>"]


def test_a_model_without_template_says_what_to_do() -> None:
    with pytest.raises(BadRow, match="set use_chat_template to false"):
        encoder(None).encode({"messages": TWO_ROUNDS})


def test_text_is_learned_whole_and_ends() -> None:
    (sample,) = encoder(learns="text", use_chat_template=False).encode({"text": "Once"})
    assert learned(sample) == ["<s>Once</s>"]


def test_long_rows_are_left_out_or_cut() -> None:
    row = {"messages": TWO_ROUNDS}
    whole = encoder().encode(row)[0]["input_ids"]
    limit = len(whole) - 5
    with pytest.raises(TooLong, match=f"it has {len(whole)} tokens, and max_length is {limit}"):
        encoder(limit=limit).encode(row)
    assert encoder(limit=limit, truncation_strategy="left").encode(row)[0]["input_ids"] == whole[5:]
    assert encoder(limit=limit, truncation_strategy="right").encode(row)[0]["input_ids"] == whole[:-5]
    with pytest.raises(TooLong, match="nothing is left"):
        encoder(limit=5, truncation_strategy="right").encode(row)


PAIR = {
    "prompt": TWO_ROUNDS[:1],
    "chosen": [turn("assistant", "uno")],
    "rejected": [turn("assistant", "a long answer")],
}


def test_pairs_have_one_prompt() -> None:
    (sample,) = encoder(learns="pairs").encode(PAIR)
    decoded = {name: tokenizer().decode(ids) for name, ids in sample.items() if name != "margin"}
    assert decoded == {
        "prompt_ids": "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
        "chosen_ids": "uno<|im_end|>\n",
        "rejected_ids": "a long answer<|im_end|>\n",
    }


def test_long_pairs_lose_the_same_of_their_prompt_or_the_end_of_their_answers() -> None:
    (whole,) = encoder(learns="pairs").encode(PAIR)
    prompt, rejected = whole["prompt_ids"], whole["rejected_ids"]
    limit = len(prompt) + len(rejected) - 3
    (left,) = encoder(learns="pairs", limit=limit, truncation_strategy="left").encode(PAIR)
    (right,) = encoder(learns="pairs", limit=limit, truncation_strategy="right").encode(PAIR)
    assert left == {**whole, "prompt_ids": prompt[3:]}
    assert right == {**whole, "rejected_ids": rejected[:-3]}
    with pytest.raises(TooLong):
        encoder(learns="pairs", limit=limit).encode(PAIR)


def test_a_pair_is_two_labelled_answers() -> None:
    good, bad = encoder(learns="labels").encode(PAIR)
    assert (good["label"], bad["label"]) == (True, False)
    assert tokenizer().decode(bad["completion_ids"]) == "a long answer<|im_end|>\n"


# ---- TRL makes the same of the same rows

ANSWERS = [
    {"prompt": "1 + 1 =", "completion": " 2"},
    {"prompt": "the quick", "completion": "er fox"},
    {"prompt": TWO_ROUNDS[:3], "completion": TWO_ROUNDS[3:]},
]


@pytest.mark.parametrize("row", ANSWERS)
@pytest.mark.parametrize("template", [CHATML, THINKS_LAST])
def test_answers_are_encoded_as_trl_does(row: dict[str, Any], template: str) -> None:
    from datasets import Dataset
    from trl import SFTTrainer

    trainer = SimpleNamespace(_tokenizer=tokenizer(template), chat_template=None, completion_only_loss=True)
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=False,
        max_length=None,
        shuffle_dataset=False,
    )
    prepare: Any = SFTTrainer._prepare_dataset
    theirs = prepare(trainer, Dataset.from_list([row]), trainer._tokenizer, args, False, None, "train")[0]
    (ours,) = encoder(template).encode(row)
    assert (ours["input_ids"], ours["labels"]) == (theirs["input_ids"], theirs["labels"])


TEXT_PAIR = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " three"}


@pytest.mark.parametrize("row", [PAIR, TEXT_PAIR])
def test_pairs_are_encoded_as_trl_does(row: dict[str, Any]) -> None:
    from datasets import Dataset
    from trl import DPOTrainer

    args: Any = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer())
    theirs = DPOTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tokenizer(), args, "train")[0]
    (ours,) = encoder(learns="pairs").encode(row)
    assert ours == {name: theirs[name] for name in ours if name != "margin"} | {"margin": 0.0}
