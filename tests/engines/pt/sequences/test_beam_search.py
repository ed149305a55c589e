"""Beam search against transformers' generate, driven by plain forward passes."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engines.pt.sequences.beam_search import BeamSearch, Hypothesis
from engines.sampler.row import SamplerRow
from engines.sampler.sampling import beam_candidates
from engines.types import Sampling

VOCAB = 40
PROMPT = [1, 5, 9, 13]


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is untyped here
def search(model: LlamaForCausalLM, sampling: Sampling, eos: tuple[int, ...], n: int) -> list[Hypothesis]:
    found = BeamSearch(sampling.num_beams, sampling.length_penalty, eos, sampling.max_new_tokens, n)
    beams, rows = [list(PROMPT)], [SamplerRow(sampling, PROMPT, eos, 0, VOCAB)]
    while beams:
        logits = model(torch.tensor(beams)).logits[:, -1]
        steps = found.advance(beam_candidates(logits, rows, None, found.candidates))
        beams = [[*beams[parent], token_id] for parent, token_id in steps]
        rows = [rows[parent].fork() for parent, _ in steps]
        for row, (_, token_id) in zip(rows, steps, strict=True):
            row.accept(token_id)
    return found.hypotheses()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("num_beams", "n", "length_penalty", "max_new_tokens", "eos", "others"),
    [
        (2, 1, 1.0, 8, (2,), {}),
        (4, 4, 1.0, 12, (2, 3), {}),
        (4, 2, 0.0, 20, (2, 3, 7), {}),
        (3, 3, 2.0, 20, (2, 3, 7, 8, 20, 21), {}),
        (3, 2, -1.0, 9, (2, 30), {}),
        (5, 5, 1.0, 1, (2,), {}),
        (4, 3, 1.0, 10, (), {}),
        (3, 3, 1.0, 10, (2, 3, 7), {"repetition_penalty": 1.4}),
        (3, 3, 1.0, 10, (2, 3, 7, 8, 20, 21), {"min_new_tokens": 4}),
    ],
)
def test_the_hypotheses_are_those_of_transformers(
    seed: int,
    num_beams: int,
    n: int,
    length_penalty: float,
    max_new_tokens: int,
    eos: tuple[int, ...],
    others: dict[str, float],
) -> None:
    model = tiny_llama(seed)
    expected = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        num_beams=num_beams,
        num_return_sequences=n,
        length_penalty=length_penalty,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos) or None,
        early_stopping=False,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **others,
    )
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        length_penalty=length_penalty,
        **others,  # type: ignore[arg-type]
    )
    found = search(model, sampling, eos, n)
    lengths = [len(hypothesis.token_ids) for hypothesis in found]
    generated = [
        tuple(sequence[len(PROMPT) :][:length])
        for sequence, length in zip(expected.sequences.tolist(), lengths, strict=True)
    ]
    assert [hypothesis.token_ids for hypothesis in found] == generated
    assert [hypothesis.score for hypothesis in found] == pytest.approx(expected.sequences_scores.tolist(), rel=1e-4)
    assert [hypothesis.stopped for hypothesis in found] == [ids[-1] in eos for ids in generated]


def test_a_beam_that_cannot_go_on_is_dropped() -> None:
    found = BeamSearch(num_beams=2, length_penalty=1.0, eos_token_ids=(0,), max_new_tokens=5, n=2)
    assert found.advance([[(1, -0.5), (2, -1.0)]]) == [(0, 1), (0, 2)]
    assert found.advance([[], [(3, -0.1)]]) == [(1, 3)]
    assert found.advance([[(0, -0.1)]]) == []
    assert [h.token_ids for h in found.hypotheses()] == [(2, 3, 0)]


def test_a_search_without_any_continuation_ends_empty() -> None:
    found = BeamSearch(num_beams=2, length_penalty=1.0, eos_token_ids=(0,), max_new_tokens=5, n=1)
    assert found.advance([[]]) == []
    assert found.hypotheses() == []
