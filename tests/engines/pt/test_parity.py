"""What the engine says is what the plain transformers model says, in float32, whatever else is in the batch."""

from collections.abc import Callable
from typing import Any

import pytest

from engines.types import GenerationRequest
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import Answer, Reference, core_of, prompt, request, run
from tests.engines.pt.tiny import CONFIGS, WINDOW

LENGTHS = (1, 3, 7, 8, 9, 16, 17, 24, 29, 31, 37, 40, 44, 48, 52, 61)
"""Of 16 prompts: on, before and behind the block borders, most of them longer than a sliding window."""

BUDGET = 24
"""Tokens of a step: most prompts are computed in several chunks, beside the decodes of others."""


def requests(**sampling: Any) -> list[GenerationRequest]:
    return [
        request(prompt(length, seed=i), f"r{i}", max_new_tokens=6 + i % 5, ignore_eos=True, logprobs=5, **sampling)
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture(params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def check(reference: Reference, asked: list[GenerationRequest], answers: dict[str, Answer]) -> None:
    for one in asked:
        answer = answers[one.request_id]
        assert answer.error is None
        assert len(answer.tokens) == one.sampling.max_new_tokens
        reference.check_greedy(one, answer.outputs[0])


def test_alone(name: str, runner: GetRunner, reference: Callable[[str], Reference]) -> None:
    one = request(prompt(3 * WINDOW + 5), max_new_tokens=16, ignore_eos=True, logprobs=5)
    check(reference(name), [one], run(core_of(runner(name)), [one]))


def test_sixteen_together_with_chunked_prefill(
    name: str, runner: GetRunner, reference: Callable[[str], Reference]
) -> None:
    core = core_of(runner(name), max_num_batched_tokens=BUDGET, max_num_seqs=16)
    asked = requests()
    check(reference(name), asked, run(core, asked))


def test_preempted(name: str, runner: GetRunner, reference: Callable[[str], Reference]) -> None:
    core = core_of(runner(name, blocks=16), max_num_batched_tokens=BUDGET, max_num_seqs=16)
    asked = requests()
    check(reference(name), asked, run(core, asked))
    assert core.stats().preemptions > 0


def test_with_prefix_hits(name: str, runner: GetRunner, reference: Callable[[str], Reference]) -> None:
    core = core_of(runner(name), max_num_batched_tokens=BUDGET, max_num_seqs=16)
    shared = prompt(35, seed=99)
    run(core, [request(shared, "first")])
    asked = [request(shared[: 35 - i] + prompt(i, seed=i), f"r{i}", ignore_eos=True, logprobs=5) for i in range(16)]
    answers = run(core, asked)
    check(reference(name), asked, answers)
    assert core.stats().prefix_cache_hits > 0
    # Whole blocks, and never the last token.
    assert [answers[f"r{i}"].first.cached_tokens for i in range(16)] == [
        (34 if i == 0 else 35 - i) // 8 * 8 for i in range(16)
    ]
