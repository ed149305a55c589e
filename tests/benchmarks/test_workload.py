"""The requests of the benchmark."""

from pathlib import Path

import pytest

from benchmarks.workload import PROMPT_TOKENS, count_tokens, make_prompts
from engines.checkpoint.loading import load_tokenizer


@pytest.mark.demo
@pytest.mark.parametrize("tokens", [PROMPT_TOKENS, 1500])
def test_prompts_are_of_one_length_distinct_and_repeatable(demo_model: Path, tokens: int) -> None:
    tokenizer = load_tokenizer(str(demo_model))

    prompts = make_prompts(tokenizer, 20, seed=1, tokens=tokens)

    assert all(abs(count_tokens(tokenizer, messages) - tokens) <= 2 for messages in prompts)
    assert len({messages[0]["content"] for messages in prompts}) == 20
    assert prompts == make_prompts(tokenizer, 20, seed=1, tokens=tokens)
    assert prompts != make_prompts(tokenizer, 20, seed=2, tokens=tokens)
