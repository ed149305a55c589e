"""The sampler in C against the same in torch, which test_sampling.py compares with the exact distribution."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import EngineFailure, InvalidRequest
from engines.sampler.native import SamplingKernel
from engines.sampler.sampling import SamplingError, sample, token_logprobs
from tests.engines.pt.machines import library_with
from tests.engines.sampler.test_sampling import FILTERS, LARGE, SMALL, logits_of, mask_of, row

MACHINES = {
    "this machine": (),
    "AVX2 alone": ("-mno-avx512f",),
    "SSE alone": ("-mno-avx512f", "-mno-avx2", "-mno-fma"),
}


@pytest.fixture(scope="module", params=MACHINES)
def kernel(request: pytest.FixtureRequest) -> SamplingKernel:
    return SamplingKernel(library_with(*MACHINES[request.param]))


@pytest.mark.parametrize("vocab", [1, 3, SMALL, 64, LARGE])
@pytest.mark.parametrize("parameters", [{"temperature": 0.0}, *FILTERS], ids=str)
def test_it_chooses_what_torch_chooses(kernel: SamplingKernel, vocab: int, parameters: dict[str, Any]) -> None:
    logits = logits_of(vocab, rows=60)
    rows = [row(vocab=vocab, seed=i, **parameters) for i in range(len(logits))]
    assert sample(logits, rows, None, kernel=kernel).token_ids == sample(logits, rows, None).token_ids


@pytest.mark.parametrize("spread", [0.0, 0.05, 30.0])
def test_even_logits_and_steep_ones(kernel: SamplingKernel, spread: float) -> None:
    logits = logits_of(LARGE, rows=len(FILTERS), spread=spread).bfloat16()  # with many ties
    rows = [row(vocab=LARGE, seed=i, **parameters) for i, parameters in enumerate(FILTERS)]
    assert sample(logits, rows, None, kernel=kernel).token_ids == sample(logits, rows, None).token_ids


def test_edits_of_some_rows(kernel: SamplingKernel) -> None:
    edits: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.3, "temperature": 0.0},
        {"presence_penalty": 0.5, "frequency_penalty": 0.2, "top_p": 0.9},
        {"logit_bias": {3: 2.5, 8: -100.0}},
        {"min_new_tokens": 2, "stop_token_ids": (5,)},
        {"allowed_token_ids": (4, 70, LARGE - 1)},
        {"top_k": 4},
    ]
    logits = logits_of(LARGE, rows=len(edits))
    masks = torch.full((len(edits), -(-LARGE // 32)), -1, dtype=torch.int32)
    masks[-1] = mask_of(70, 71, vocab=LARGE)[0]
    for given in (None, masks):
        rows = [row([4, 9, 30], vocab=LARGE, seed=i, **parameters) for i, parameters in enumerate(edits)]
        for _ in range(5):
            chosen = sample(logits, rows, given, kernel=kernel).token_ids
            assert chosen == sample(logits, rows, given).token_ids
            for one, token_id in zip(rows, chosen, strict=True):
                one.accept(token_id)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("parameters", [{}, {"top_p": 0.999999999}, {"top_k": 4}, {"min_p": 1e-30}], ids=str)
def test_the_ends_of_the_distribution_are_tokens_that_can_come(
    kernel: SamplingKernel, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], uniform: float
) -> None:
    monkeypatch.setattr("engines.sampler.row.SamplerRow.uniform", lambda self: uniform)
    logits = torch.full((1, LARGE), -torch.inf)
    logits[0, [70, 4321]] = torch.tensor([0.5, 0.0])
    found = sample(logits, [row(vocab=LARGE, **parameters)], None, kernel=kernel).token_ids
    assert found == [70 if uniform == 0 else 4321]


def test_a_row_does_not_see_its_batch(kernel: SamplingKernel) -> None:
    logits = logits_of(LARGE, rows=40)
    parameters = [*FILTERS, {"temperature": 0.0}]
    rows = [row(vocab=LARGE, seed=i, logprobs=3, **parameters[i % len(parameters)]) for i in range(len(logits))]
    together = sample(logits, rows, None, kernel=kernel)
    alone = [sample(logits[i : i + 1], [one], None, kernel=kernel) for i, one in enumerate(rows)]
    assert together.token_ids == [batch.token_ids[0] for batch in alone]
    assert together.logprobs == [batch.logprobs[0] for batch in alone]


@pytest.mark.parametrize("tempered", [False, True])
def test_logprobs_are_those_of_torch(kernel: SamplingKernel, tempered: bool) -> None:
    asked: list[dict[str, Any]] = [
        {"logprobs": 5, "temperature": 0.3},
        {},
        {"logprobs": 0, "temperature": 2.0, "logit_bias": {17: 100.0}},
        {"logprobs": LARGE},
    ]
    logits = logits_of(LARGE, rows=len(asked))
    logits[3, 5:9] = -torch.inf
    rows = [row(vocab=LARGE, seed=i, **parameters) for i, parameters in enumerate(asked)]
    found, expected = (sample(logits, rows, None, tempered=tempered, kernel=k).logprobs for k in (kernel, None))
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert mine.token_id == theirs.token_id and mine.rank is None
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
            assert [token_id for token_id, _ in mine.top[:20]] == [token_id for token_id, _ in theirs.top[:20]]
            assert [value for _, value in mine.top] == pytest.approx([value for _, value in theirs.top], abs=1e-5)
            assert len({token_id for token_id, _ in mine.top}) == len(theirs.top)


@pytest.mark.parametrize("vocab", [3, SMALL, LARGE])
def test_prompt_logprobs_are_those_of_torch(kernel: SamplingKernel, vocab: int) -> None:
    logits, ids = logits_of(vocab, rows=30), torch.arange(30) % vocab
    for mine, theirs in zip(token_logprobs(logits, ids, 4, kernel=kernel), token_logprobs(logits, ids, 4), strict=True):
        assert (mine.token_id, mine.rank) == (theirs.token_id, theirs.rank)
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert [token_id for token_id, _ in mine.top] == [token_id for token_id, _ in theirs.top]


def test_logprobs_have_a_floor(kernel: SamplingKernel) -> None:
    logits = torch.tensor([[0.0, -torch.inf, -20000.0]])
    [found] = token_logprobs(logits, torch.tensor([1]), 3, kernel=kernel)
    assert found.logprob == -9999.0
    assert found.top == ((0, 0.0), (2, -9999.0), (1, -9999.0))


@pytest.mark.parametrize("parameters", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 5}], ids=str)
@pytest.mark.parametrize("broken", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_logits_that_are_not_numbers_fail_their_row_only(
    kernel: SamplingKernel, vocab: int, broken: float, parameters: dict[str, Any]
) -> None:
    logits = logits_of(vocab, rows=3)
    logits[1, 20] = broken
    with pytest.raises(SamplingError) as caught:
        sample(logits, [row(vocab=vocab, **parameters) for _ in range(3)], None, kernel=kernel)
    assert list(caught.value.failures) == [1]
    assert isinstance(caught.value.failures[1], EngineFailure)


def test_logprobs_of_what_are_no_numbers_are_none_either(kernel: SamplingKernel) -> None:
    [found] = token_logprobs(torch.full((1, SMALL), torch.nan), torch.tensor([1]), 3, kernel=kernel)
    values: Tensor = torch.tensor([found.logprob, *(value for _, value in found.top)])
    assert len(values) == 4 and bool(values.isnan().all())


def test_constraints_that_leave_nothing_are_the_requests_fault(kernel: SamplingKernel) -> None:
    with pytest.raises(SamplingError) as caught:
        rows = [row(), row(allowed_token_ids=(2,), min_new_tokens=1)]
        sample(torch.zeros(2, SMALL), rows, None, kernel=kernel)
    assert list(caught.value.failures) == [1]
    assert isinstance(caught.value.failures[1], InvalidRequest)
