"""The work that every server gets: distinct chat prompts of one length, greedy or sampled, answered at one length."""

import random
from dataclasses import dataclass, field
from typing import Any

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64

MODES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_p": 0.95},
}

TEXT = """
    river mountain window garden letter winter summer morning evening silver golden paper kitchen market station bridge
    doctor teacher farmer sailor painter writer brother sister mother father village castle forest island harbor ocean
    story music dinner bread butter apple orange cotton leather copper engine wheel train horse rabbit tiger eagle
    spring autumn thunder rain snow cloud shadow candle mirror table chair door house street corner tower church school
    quiet gentle clever honest simple hidden broken famous ancient modern distant narrow heavy bright yellow purple
    walk carry follow remember answer listen build travel open close borrow promise measure discover repeat gather
"""
WORDS = TEXT.split()


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement's requests, as a driver gets them: how many at once, and what in each."""

    messages: list[list[dict[str, str]]]
    concurrency: int
    sampling: dict[str, float]
    output_tokens: int = OUTPUT_TOKENS
    extra: dict[str, Any] = field(default_factory=dict)
    """What the body needs besides on this server, so that no answer ends early."""
    models: list[str] = field(default_factory=list)
    """What requests name as `model`, in turn; none: the driver's own."""


def make_prompts(tokenizer: Any, count: int, *, seed: int) -> list[list[dict[str, str]]]:
    """Conversations of PROMPT_TOKENS tokens each. They differ from their first words on: no prefix cache helps."""
    rng = random.Random(seed)
    return [_prompt(tokenizer, rng) for _ in range(count)]


def _prompt(tokenizer: Any, rng: random.Random) -> list[dict[str, str]]:
    system = f"{' '.join(rng.choices(WORDS, k=6))}. You tell long stories and never stop early."
    words = rng.choices(WORDS, k=PROMPT_TOKENS)
    for length in range(PROMPT_TOKENS):
        task = f"Tell a very long story with these words: {' '.join(words[:length])}."
        messages = [{"role": "system", "content": system}, {"role": "user", "content": task}]
        if count_tokens(tokenizer, messages) >= PROMPT_TOKENS:
            return messages
    raise AssertionError("every word has a token at least")


def count_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    return len(render(tokenizer, messages))


def render(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's token ids, by the model's own chat template."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
