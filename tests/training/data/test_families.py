"""With the template of any family, an answer is learned behind the prompt of a chat request, up to where serving
stops."""

from typing import Any

import pytest

from engines.capabilities import Capabilities
from engines.text.prompt import Conversation, PromptRenderer
from engines.text.tool_formats import find_tool_format
from engines.text.tool_messages import for_template
from tests.training.data.families import NAMES, Family, family
from training.data.answers import Note
from training.data.encode import IGNORED, Encoder
from training.params.sft import SftParams

LIMITS = Capabilities(max_model_len=1_000_000, vocab_size=1_000_000)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


QUESTION, ANSWER = turn("user", "QUESTION"), turn("assistant", "ANSWER")
REASONED = turn("assistant", "ANSWER", reasoning_content="BECAUSE")
INLINE = turn("assistant", "<think>\nBECAUSE\n</think>\n\nANSWER")
ROUNDS = [turn("user", "one"), turn("assistant", "uno"), turn("user", "two"), turn("assistant", "dos")]


async def endpoint(messages: list[dict[str, Any]], of: Family) -> list[int]:
    """The prompt of a chat request, as the server makes it."""
    renderer = PromptRenderer(of.tokenizer)
    form = find_tool_format(renderer.template, of.tokenizer.get_added_vocab())
    ready, shown = for_template(renderer.messages(messages), [], form, renderer.template)
    return (renderer.chat(Conversation(messages=ready, tools=shown), LIMITS)).ids


def encoder(of: Family, **params: Any) -> Encoder:
    return Encoder(SftParams(**params), of.tokenizer, "answers", None)


def learned(sample: dict[str, Any]) -> list[int]:
    return [label for label in sample["labels"] if label != IGNORED]


def runs(sample: dict[str, Any]) -> list[tuple[int, int]]:
    """Where stretches that are learned begin and end."""
    known = [label != IGNORED for label in sample["labels"]]
    edges = [i for i in range(len(known) + 1) if (i < len(known) and known[i]) != (i > 0 and known[i - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def assert_ends(ids: list[int], of: Family) -> None:
    """With the token that ends an answer; behind it the template may write a line break, or the end of the text."""
    at = ids.index(of.end)
    rest = [token for token in ids[at:] if token not in (of.end, of.tokenizer.eos_token_id)]
    assert not of.tokenizer.decode(rest).strip(), of.tokenizer.decode(ids)


@pytest.mark.parametrize("answer", [ANSWER, REASONED, INLINE], ids=["plain", "reasoned", "inline"])
@pytest.mark.parametrize("name", NAMES)
async def test_an_answer_is_learned_behind_its_prompt_up_to_its_end(name: str, answer: dict[str, Any]) -> None:
    of = family(name)
    prompt = await endpoint([QUESTION], of)
    (sample,) = encoder(of).encode({"messages": [QUESTION, answer]})
    assert sample["input_ids"][: len(prompt)] == prompt
    assert [start for start, _ in runs(sample)] == [len(prompt)]
    assert_ends(learned(sample), of)
    assert "ANSWER" in of.tokenizer.decode(learned(sample))


@pytest.mark.parametrize("name", NAMES)
async def test_every_answer_of_a_conversation_is_learned_behind_its_own_prompt(name: str) -> None:
    of = family(name)
    found = {}
    for sample in encoder(of).encode({"messages": ROUNDS}):
        for start, end in runs(sample):
            assert_ends(sample["input_ids"][start:end], of)
            found[start] = sample["input_ids"][:start]
    assert sorted(found.values(), key=len) == [await endpoint(ROUNDS[:1], of), await endpoint(ROUNDS[:3], of)]


@pytest.mark.parametrize("name", NAMES)
def test_reasoning_is_learned_or_its_absence_told(name: str) -> None:
    of = family(name)
    encode = encoder(of)
    (sample,) = encode.encode({"messages": [QUESTION, REASONED]})
    assert ("BECAUSE" in of.tokenizer.decode(learned(sample))) != (Note.REASONING_LEFT_OUT in encode.notes)


THINKING = ["deepseek_r1_distill", "deepseekv3", "nemotron_3_nano", "qwen3", "qwen3_5_think", "glm4moe", "qwq"]


@pytest.mark.parametrize("name", THINKING)
def test_answers_without_reasoning_of_a_model_that_reasons_are_told(name: str) -> None:
    encode = encoder(family(name))
    encode.encode({"messages": [QUESTION, ANSWER]})
    assert encode.notes == [Note.NO_REASONING]
    encode.encode({"messages": [QUESTION, REASONED]})
    assert encode.notes == []


@pytest.mark.parametrize("name", ["nemotron_3_nano", "qwen3", "qwen3_5_think", "glm4moe"])
def test_a_variable_of_the_template_turns_reasoning_off(name: str) -> None:
    encode = encoder(family(name), chat_template_kwargs={"enable_thinking": False})
    encode.encode({"messages": [QUESTION, ANSWER]})
    assert encode.notes == []


def test_a_template_without_end_is_told_and_the_models_own_is_learned() -> None:
    of = family("chatml")
    of.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    of.tokenizer.eos_token = "</s>"
    encode = encoder(of)
    encode.encode({"messages": [QUESTION, ANSWER]})
    assert encode.notes == [Note.END_ADDED]
