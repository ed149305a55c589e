"""Beam search through the engine is transformers' own `generate(num_beams=...)`, whatever else runs."""

from collections.abc import Callable

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from engines.errors import InvalidRequest
from engines.types import GenerationRequest
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import BLOCK_SIZE, Answer, Reference, core_of, prompt, request, run
from tests.engines.pt.tiny import EOS

LENGTH = 10


def expected(
    model: PreTrainedModel, prompt_ids: list[int], *, num_beams: int, n: int, length_penalty: float
) -> list[list[int]]:
    config = GenerationConfig(
        max_new_tokens=LENGTH,
        num_beams=num_beams,
        num_return_sequences=n,
        length_penalty=length_penalty,
        do_sample=False,
        early_stopping=False,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    ids = torch.tensor([prompt_ids])
    with torch.inference_mode():
        rows = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[:, ids.shape[1] :]
    return [[token for token in row if token != 0] for row in rows.tolist()]


def searches() -> list[GenerationRequest]:
    return [
        request(
            prompt(5 + 6 * i, i),
            f"s{i}",
            n=1 + i % 3,
            num_beams=(4, 3, 2)[i % 3] if i % 3 < 2 else 3,
            length_penalty=(1.0, 0.5, 2.0)[i % 3],
            max_new_tokens=LENGTH,
        )
        for i in range(5)
    ]


def check(reference: Callable[[str], Reference], answers: dict[str, Answer]) -> None:
    model = reference("llama").model
    for one in searches():
        sampling = one.sampling
        wanted = expected(
            model, one.prompt_ids, num_beams=sampling.num_beams, n=one.n, length_penalty=sampling.length_penalty
        )
        outputs = answers[one.request_id].outputs
        assert [outputs[i].token_ids for i in range(one.n)] == wanted
        for output in outputs.values():
            assert (output.stop_token_id == EOS) == (output.token_ids[-1] == EOS)


@pytest.mark.parametrize("at", range(5))
def test_alone(runner: GetRunner, reference: Callable[[str], Reference], at: int) -> None:
    one = searches()[at]
    answers = run(core_of(runner("llama")), [one])
    wanted = expected(
        reference("llama").model,
        one.prompt_ids,
        num_beams=one.sampling.num_beams,
        n=one.n,
        length_penalty=one.sampling.length_penalty,
    )
    assert [answers[one.request_id].outputs[i].token_ids for i in range(one.n)] == wanted


def mixed() -> list[GenerationRequest]:
    others = [request(prompt(12, i), f"r{i}", temperature=1.0, n=2, ignore_eos=True) for i in range(3)]
    return [searches()[0], *others, *searches()[1:]]


def test_beside_other_requests_in_chunks(runner: GetRunner, reference: Callable[[str], Reference]) -> None:
    check(reference, run(core_of(runner("llama"), max_num_batched_tokens=11), mixed()))


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preempted(runner: GetRunner, reference: Callable[[str], Reference], prefix_caching: bool) -> None:
    small = runner("llama", blocks=16, max_model_len=48)
    core = core_of(small, max_num_batched_tokens=11, enable_prefix_caching=prefix_caching)
    check(reference, run(core, mixed()))
    assert core.stats().preemptions > 0


def test_with_few_sequences_at_once(runner: GetRunner, reference: Callable[[str], Reference]) -> None:
    core = core_of(runner("llama"), max_num_seqs=4, max_num_batched_tokens=11)
    check(reference, run(core, mixed()))


def test_beams_that_do_not_fit_the_cache_at_once_are_told_so_and_hold_up_nobody(runner: GetRunner) -> None:
    small = runner("llama", blocks=4, max_model_len=4 * BLOCK_SIZE)
    core = core_of(small, enable_prefix_caching=False)
    asked = [
        request(prompt(6), "wide", num_beams=6, max_new_tokens=20, ignore_eos=True),
        request(prompt(9), "after", ignore_eos=True),
    ]
    answers = run(core, asked)
    assert isinstance(answers["wide"].error, InvalidRequest)
    assert "do not fit the cache of 32 tokens" in answers["wide"].error.message
    assert answers["after"].tokens == run(core_of(runner("llama")), [asked[1]])["after"].tokens


def test_two_searches_never_wait_for_each_others_blocks(
    runner: GetRunner, reference: Callable[[str], Reference]
) -> None:
    """Each holds blocks that the other's preempted beams need."""
    small = runner("llama", blocks=9, max_model_len=40)
    core = core_of(small, enable_prefix_caching=False)
    asked = [request(prompt(7, i), f"s{i}", num_beams=3, max_new_tokens=LENGTH) for i in range(4)]
    answers = run(core, asked)
    for one in asked:
        wanted = expected(reference("llama").model, one.prompt_ids, num_beams=3, n=1, length_penalty=1.0)
        assert [answers[one.request_id].tokens] == wanted


def test_fewer_outputs_than_asked_for_is_an_error_not_a_wait(runner: GetRunner) -> None:
    one = request(prompt(7), num_beams=2, n=2, allowed_token_ids=(EOS,))
    [answer] = run(core_of(runner("llama")), [one]).values()
    assert isinstance(answer.error, InvalidRequest)
