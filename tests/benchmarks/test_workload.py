"""The requests of the benchmark."""

from pathlib import Path

import pytest

from benchmarks.workload import PROMPT_TOKENS, count_tokens, make_prompts
from engines.checkpoint.loading import load_tokenizer


@pytest.mark.demo
def test_prompts_are_of_one_length_distinct_and_repeatable(demo_model: Path) -> None:
    tokenizer = load_tokenizer(str(demo_model))

    prompts = make_prompts(tokenizer, 20, seed=1)

    assert all(abs(count_tokens(tokenizer, messages) - PROMPT_TOKENS) <= 2 for messages in prompts)
    assert len({messages[0]["content"] for messages in prompts}) == 20
    assert prompts == make_prompts(tokenizer, 20, seed=1)
    assert prompts != make_prompts(tokenizer, 20, seed=2)
