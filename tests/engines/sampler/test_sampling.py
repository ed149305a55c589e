"""The sampler against the exact distribution, against transformers' logits processors, and against itself."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engines.errors import EngineFailure, InvalidRequest
from engines.sampler import by_torch
from engines.sampler.row import SamplerRow
from engines.sampler.sampling import SamplingError, beam_candidates, sample, token_logprobs
from engines.types import Sampling

EOS = (2,)
SMALL, LARGE = 50, 8200
"""A vocabulary that fits in the candidates, and one that does not (and is no multiple of a block)."""


def row(prompt: list[int] | None = None, *, index: int = 0, vocab: int = SMALL, **parameters: Any) -> SamplerRow:
    sampling = Sampling(max_new_tokens=64, **parameters)
    return SamplerRow(sampling, prompt or [], EOS, index, vocab)


def logits_of(vocab: int, rows: int = 1, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def distribution(logits: Tensor, **parameters: Any) -> Tensor:
    """The exact distribution over one row's tokens, as transformers' warpers make it."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(parameters.get("temperature", 1.0)))]
    if top_k := parameters.get("top_k"):
        warpers.append(TopKLogitsWarper(top_k))
    if top_p := parameters.get("top_p"):
        warpers.append(TopPLogitsWarper(top_p))
    if min_p := parameters.get("min_p"):
        warpers.append(MinPLogitsWarper(min_p))
    scores = logits.clone()
    for warper in warpers:
        scores = warper(None, scores)
    return scores[0].double().softmax(-1)


def draws(logits: Tensor, count: int, **parameters: Any) -> list[int]:
    """`count` draws from one row's logits, as the positions of one stream, sampled as a batch of streams."""
    rows = [row(vocab=logits.shape[1], seed=1, index=i, **parameters) for i in range(100)]
    batch = logits.expand(len(rows), -1)
    tokens: list[int] = []
    while len(tokens) < count:
        chosen = sample(batch, rows, None).token_ids
        for some_row, token_id in zip(rows, chosen, strict=True):
            some_row.accept(token_id)
        tokens += chosen
    return tokens


def chi_square_ok(tokens: list[int], expected: Tensor) -> bool:
    """Pearson's test, cells below 5 expected draws thrown together, against the 1 - 1e-4 quantile."""
    counts, n = Counter(tokens), len(tokens)
    assert all(expected[token_id] > 0 for token_id in counts), "a token was drawn that the filters exclude"
    cells = [(counts[i], p * n) for i, p in enumerate(expected.tolist()) if p * n >= 5]
    rest_expected = n - sum(e for _, e in cells)
    if rest_expected >= 5:
        cells.append((n - sum(c for c, _ in cells), rest_expected))
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    freedom = max(len(cells) - 1, 1)
    # Wilson and Hilferty's approximation of the quantile; 3.72 standard deviations leave 1e-4.
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic < quantile


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 40, "temperature": 2.0},
    {"top_p": 0.3},
    {"top_p": 0.9, "temperature": 0.8},
    {"top_p": 0.999, "temperature": 2.0},
    {"min_p": 0.1},
    {"min_p": 0.001, "temperature": 2.0},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.05, "temperature": 1.3},
    {"top_k": 3000, "top_p": 0.95, "temperature": 3.0},
]


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
@pytest.mark.parametrize("parameters", FILTERS, ids=str)
def test_frequencies_follow_the_exact_distribution(vocab: int, parameters: dict[str, Any]) -> None:
    logits = logits_of(vocab)
    assert chi_square_ok(draws(logits, 4000, **parameters), distribution(logits, **parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_first_of_the_largest(dtype: torch.dtype) -> None:
    logits = logits_of(LARGE, rows=7).to(dtype)  # bfloat16 has many ties
    rows = [row(vocab=LARGE, temperature=0.0) for _ in range(7)]
    assert sample(logits, rows, None).token_ids == logits.float().argmax(-1).tolist()


def test_a_tiny_temperature_is_greedy() -> None:
    logits = logits_of(SMALL, rows=3)
    rows = [row(temperature=1e-6) for _ in range(3)]
    assert sample(logits, rows, None).token_ids == logits.argmax(-1).tolist()


def test_the_logits_are_left_as_they_were() -> None:
    logits = logits_of(64)
    before = logits.clone()
    sample(logits, [row(vocab=64, logit_bias={3: 5.0}, temperature=0.5, top_k=4)], None)
    assert torch.equal(logits, before)


# Every edit, through the greedy choice of its complement: what beam_candidates lists is what the edits left.


def edited(logits: Tensor, some_row: SamplerRow, masks: Tensor | None = None) -> Tensor:
    """The logprobs after all edits, -inf for what is excluded."""
    scores = torch.full_like(logits, -torch.inf)
    for token_id, value in beam_candidates(logits, [some_row], masks, logits.shape[1])[0]:
        scores[0, token_id] = value
    return scores


def test_repetition_penalty_equals_that_of_transformers() -> None:
    prompt, output = [4, 9, 9, 30], [7, 4, 7]
    some_row = row(prompt, repetition_penalty=1.3)
    for token_id in output:
        some_row.accept(token_id)
    logits = logits_of(SMALL)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + output]), logits.log_softmax(-1))
    torch.testing.assert_close(edited(logits, some_row), expected)


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    some_row = row([4, 5, 6], presence_penalty=0.5, frequency_penalty=0.25)
    for token_id in [7, 4, 7]:
        some_row.accept(token_id)
    logits = logits_of(SMALL)
    expected = logits.log_softmax(-1)
    expected[0, 7] -= 0.5 + 2 * 0.25
    expected[0, 4] -= 0.5 + 0.25
    torch.testing.assert_close(edited(logits, some_row), expected)


def test_penalties_keep_up_with_a_long_output() -> None:
    some_row = row(list(range(10)), vocab=LARGE, repetition_penalty=1.1, frequency_penalty=0.1)
    output = [i * 7 % LARGE for i in range(500)]
    for token_id in output:
        some_row.accept(token_id)
    logits = logits_of(LARGE)
    expected = RepetitionPenaltyLogitsProcessor(1.1)(torch.tensor([[*range(10), *output]]), logits.log_softmax(-1))
    expected[0, output] -= 0.1
    torch.testing.assert_close(edited(logits, some_row), expected)


def test_logit_bias_is_added() -> None:
    logits = logits_of(SMALL)
    expected = logits.log_softmax(-1)
    expected[0, 3] += 2.5
    expected[0, 8] -= 100
    torch.testing.assert_close(edited(logits, row(logit_bias={3: 2.5, 8: -100.0})), expected)


@pytest.mark.parametrize("output", [[], [11], [11, 12], [5, 11, 12], [12, 11], [11, 12, 13]])
def test_bad_words_equal_those_of_transformers(output: list[int]) -> None:
    words = [[9], [11, 12], [11, 12, 13], [12, 40]]
    some_row = row(bad_words_ids=tuple(map(tuple, words)))
    for token_id in output:
        some_row.accept(token_id)
    logits = logits_of(SMALL)
    processor = NoBadWordsLogitsProcessor(words, eos_token_id=None)
    expected = processor(torch.tensor([output], dtype=torch.long), logits.log_softmax(-1))
    torch.testing.assert_close(edited(logits, some_row), expected)


def test_a_bad_word_is_never_completed_while_sampling() -> None:
    some_row = row(seed=3, allowed_token_ids=(10, 11, 12), bad_words_ids=((10, 11), (11, 12, 12)))
    output: list[int] = []
    for _ in range(300):
        output += sample(torch.zeros(1, SMALL), [some_row], None).token_ids
        some_row.accept(output[-1])
    assert set(output) == {10, 11, 12}
    assert (10, 11) not in pairwise(output)
    assert (11, 12, 12) not in zip(output, output[1:], output[2:], strict=False)


def test_a_bad_word_that_the_prompt_began_may_be_completed() -> None:
    logits = torch.zeros(1, SMALL)
    logits[0, 12] = 9
    assert sample(logits, [row([11], bad_words_ids=((11, 12),), temperature=0.0)], None).token_ids == [12]


def test_only_allowed_tokens_come() -> None:
    logits = logits_of(SMALL)
    others = [i for i in range(SMALL) if i not in (3, 33, 49)]
    expected = SuppressTokensLogitsProcessor(others)(None, logits.log_softmax(-1))
    torch.testing.assert_close(edited(logits, row(allowed_token_ids=(3, 33, 49))), expected)


def test_stop_tokens_wait_for_the_minimum() -> None:
    some_row = row(min_new_tokens=2, stop_token_ids=(5,), temperature=0.0)
    logits = torch.zeros(1, SMALL)
    logits[0, [2, 5]] = torch.tensor([9.0, 8.0])
    chosen = []
    for _ in range(3):
        chosen += sample(logits, [some_row], None).token_ids
        some_row.accept(chosen[-1])
    assert chosen == [0, 0, 2]


def mask_of(*allowed: int, vocab: int = SMALL) -> Tensor:
    bits = np.zeros(-(-vocab // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))[None]


@pytest.mark.parametrize("vocab", [SMALL, 64, LARGE])
def test_a_grammar_mask_excludes_what_it_does_not_name(vocab: int) -> None:
    logits = logits_of(vocab)
    left = edited(logits, row(vocab=vocab), mask_of(0, 31, 32, 49, vocab=vocab))
    assert (left[0] > -torch.inf).nonzero()[:, 0].tolist() == [0, 31, 32, 49]


def test_rows_without_a_constraint_share_a_batch_with_one() -> None:
    logits = logits_of(LARGE, rows=3)
    masks = torch.full((3, -(-LARGE // 32)), -1, dtype=torch.int32)
    masks[1] = mask_of(70, 71, vocab=LARGE)[0]
    rows = [row(vocab=LARGE, temperature=0.0) for _ in range(3)]
    expected = logits.argmax(-1).tolist()
    expected[1] = 70 + int(logits[1, 70:72].argmax())
    assert sample(logits, rows, masks).token_ids == expected


def test_allowed_tokens_and_a_mask_both_hold() -> None:
    some_row = row(allowed_token_ids=(4, 5, 6), temperature=1.0)
    assert sample(torch.zeros(1, SMALL), [some_row], mask_of(6, 7)).token_ids == [6]


@pytest.mark.parametrize("parameters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}], ids=str)
def test_a_mask_with_one_token_forces_it(parameters: dict[str, Any]) -> None:
    some_row = row(vocab=LARGE, **parameters)
    assert sample(logits_of(LARGE), [some_row], mask_of(4321, vocab=LARGE)).token_ids == [4321]


# Exactness of the shortcut


@pytest.mark.parametrize("parameters", [p for p in FILTERS if {"top_k", "top_p", "min_p"} & p.keys()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shortcut_chooses_what_the_full_sort_chooses(
    parameters: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = logits_of(LARGE, rows=200).to(dtype)
    rows = [row(vocab=LARGE, seed=i, **parameters) for i in range(len(logits))]
    chosen = sample(logits, rows, None).token_ids
    monkeypatch.setattr(by_torch, "CANDIDATES", (LARGE * 2,))
    assert sample(logits, rows, None).token_ids == chosen


def test_ties_beyond_the_candidates_are_not_overlooked() -> None:
    """All tokens tie: top_k keeps them all, and the largest few are no more likely than the others."""
    logits = torch.zeros(1, LARGE)
    tokens = draws(logits, 2000, top_k=10)
    assert max(tokens) > LARGE * 0.99 and min(tokens) < LARGE * 0.01


# Randomness


def stream(some_row: SamplerRow, logits: Tensor, others: list[SamplerRow], place: int) -> list[int]:
    """20 tokens of one row that sits at `place` in a batch with others."""
    batch = [*others[:place], some_row, *others[place:]]
    tokens = []
    for step in range(20):
        noise = logits_of(logits.shape[1], rows=len(batch), seed=step)
        noise[place] = logits[step]
        tokens.append(sample(noise, batch, None).token_ids[place])
        some_row.accept(tokens[-1])
    return tokens


some_parameters = st.sampled_from([*FILTERS, {"temperature": 0.0}, {"presence_penalty": 1.0, "top_p": 0.8}])


@settings(max_examples=25)
@given(
    own=some_parameters,
    others=st.lists(some_parameters, max_size=6),
    seed=st.integers(-(2**63), 2**63 - 1),
    data=st.data(),
)
def test_a_seeded_row_does_not_see_its_batch(
    own: dict[str, Any], others: list[dict[str, Any]], seed: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(others)))
    logits = logits_of(LARGE, rows=20, seed=99)
    alone = stream(row(vocab=LARGE, seed=seed, **own), logits, [], 0)
    rows = [row(vocab=LARGE, **parameters) for parameters in others]
    assert stream(row(vocab=LARGE, seed=seed, **own), logits, rows, place) == alone


def test_output_i_uses_the_seed_plus_i() -> None:
    logits = logits_of(LARGE, rows=20)
    second = stream(row(vocab=LARGE, seed=5, index=1), logits, [], 0)
    assert second == stream(row(vocab=LARGE, seed=6), logits, [], 0)
    assert second != stream(row(vocab=LARGE, seed=5), logits, [], 0)


def test_rows_without_a_seed_differ() -> None:
    rows = [row(vocab=LARGE) for _ in range(20)]
    assert len(set(sample(torch.zeros(20, LARGE), rows, None).token_ids)) > 10


def test_the_stream_goes_by_position_even_past_forced_tokens() -> None:
    logits = logits_of(LARGE, rows=100)
    free, forced = (row(vocab=LARGE, seed=8) for _ in range(2))
    for step in range(100):
        masks = mask_of(7, vocab=LARGE) if step < 90 else None
        last = [
            sample(logits[step : step + 1], [some_row], m).token_ids[0]
            for some_row, m in ((free, None), (forced, masks))
        ]
        free.accept(last[0])
        forced.accept(last[1])
        assert step < 90 or last[0] == last[1]


def test_sampling_again_without_accepting_gives_the_same_token() -> None:
    logits, some_row = logits_of(LARGE), row(vocab=LARGE)
    assert sample(logits, [some_row], None) == sample(logits, [some_row], None)


def test_a_fork_goes_its_own_way() -> None:
    first = row(repetition_penalty=2.0)
    first.accept(3)
    second = first.fork()
    second.accept(4)
    logits = torch.zeros(1, SMALL)
    changed = [(edited(logits, r)[0] != edited(logits, row())[0]).nonzero()[:, 0].tolist() for r in (first, second)]
    assert changed == [[3], [3, 4]]


# Logprobs


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = logits_of(LARGE, rows=3).bfloat16()
    rows = [
        row(vocab=LARGE, logprobs=5, temperature=0.3, top_k=10, logit_bias={17: 100.0}, repetition_penalty=1.5),
        row(vocab=LARGE),
        row(vocab=LARGE, logprobs=0),
    ]
    batch = sample(logits, rows, None)
    exact = logits.float().log_softmax(-1)
    first, second, third = batch.logprobs
    assert first is not None and second is None and third is not None
    assert batch.token_ids[0] == first.token_id == 17
    assert first.logprob == pytest.approx(float(exact[0, 17]), abs=1e-4)
    assert [value for _, value in first.top] == pytest.approx(exact[0].topk(5).values.tolist(), abs=1e-4)
    assert all(value == pytest.approx(float(exact[0, token_id]), abs=1e-4) for token_id, value in first.top)
    assert third.top == () and third.logprob == pytest.approx(float(exact[2, third.token_id]), abs=1e-4)


@pytest.mark.parametrize("vocab", [3, SMALL, LARGE])
def test_prompt_logprobs_equal_log_softmax(vocab: int) -> None:
    logits = logits_of(vocab, rows=300)
    ids = torch.arange(300) % vocab
    found = token_logprobs(logits, ids, 4)
    exact = logits.log_softmax(-1)
    assert [p.token_id for p in found] == ids.tolist()
    torch.testing.assert_close(torch.tensor([p.logprob for p in found]), exact.gather(1, ids[:, None])[:, 0])
    top = torch.tensor([[value for _, value in p.top] for p in found])
    torch.testing.assert_close(top, exact.topk(min(4, vocab)).values)
    place = exact.argsort(1, descending=True).argsort(1).gather(1, ids[:, None])[:, 0] + 1
    assert [p.rank for p in found] == place.tolist()


def test_the_whole_vocabulary_can_be_told() -> None:
    logits = logits_of(LARGE)
    [found] = token_logprobs(logits, torch.tensor([5]), LARGE)
    assert sorted(token_id for token_id, _ in found.top) == list(range(LARGE))


def test_logprobs_have_a_floor() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -20000.0]])
    [found] = token_logprobs(logits, torch.tensor([1]), 3)
    assert found.logprob == -9999.0
    assert found.top == ((0, 0.0), (2, -9999.0), (1, -9999.0))


# Rows without an answer


@pytest.mark.parametrize("parameters", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 5}], ids=str)
@pytest.mark.parametrize("broken", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_logits_that_are_not_numbers_fail_their_row_only(vocab: int, broken: float, parameters: dict[str, Any]) -> None:
    logits = logits_of(vocab, rows=3)
    logits[1, 20] = broken
    with pytest.raises(SamplingError) as caught:
        sample(logits, [row(vocab=vocab, **parameters) for _ in range(3)], None)
    assert list(caught.value.failures) == [1]
    assert isinstance(caught.value.failures[1], EngineFailure)


def test_constraints_that_leave_nothing_are_the_requests_fault() -> None:
    with pytest.raises(SamplingError) as caught:
        sample(torch.zeros(2, SMALL), [row(), row(allowed_token_ids=(2,), min_new_tokens=1)], None)
    assert list(caught.value.failures) == [1]
    assert isinstance(caught.value.failures[1], InvalidRequest)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("logit_bias", {"logit_bias": {SMALL: 1.0}}),
        ("allowed_token_ids", {"allowed_token_ids": (-1,)}),
        ("stop_token_ids", {"stop_token_ids": (1000,)}),
        ("bad_words", {"bad_words_ids": ((1, SMALL),)}),
    ],
)
def test_a_token_outside_the_vocabulary_is_refused_by_name(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        row(**parameters)
    assert caught.value.param == name


def test_a_beam_without_an_allowed_token_has_no_candidates() -> None:
    masks = torch.cat([mask_of(), mask_of(4, 5)])
    dead, alive = beam_candidates(logits_of(SMALL, rows=2), [row(), row()], masks, 8)
    assert dead == []
    assert {token_id for token_id, _ in alive} == {4, 5}
