"""The work that every server gets: distinct chat prompts of one length, greedy or sampled, answered at one length."""

import bisect
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


def make_prompts(tokenizer: Any, count: int, *, seed: int, tokens: int = PROMPT_TOKENS) -> list[list[dict[str, str]]]:
    """Conversations of so many tokens each. They differ from their first words on: no prefix cache helps."""
    rng = random.Random(seed)
    return [_prompt(tokenizer, rng, tokens) for _ in range(count)]


def _prompt(tokenizer: Any, rng: random.Random, tokens: int) -> list[dict[str, str]]:
    system = f"{' '.join(rng.choices(WORDS, k=6))}. You tell long stories and never stop early."
    words = rng.choices(WORDS, k=tokens)

    def with_words(count: int) -> list[dict[str, str]]:
        task = f"Tell a very long story with these words: {' '.join(words[:count])}."
        return [{"role": "system", "content": system}, {"role": "user", "content": task}]

    enough = bisect.bisect_left(range(tokens), tokens, key=lambda count: count_tokens(tokenizer, with_words(count)))
    return with_words(enough)  # every word has a token at least


def count_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    return len(render(tokenizer, messages))


def render(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's token ids, by the model's own chat template."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
