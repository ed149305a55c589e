"""Requests as LMDeploy takes them, and its logprobs as we tell them."""

from collections.abc import Mapping
from typing import Any

from lmdeploy.messages import GenerationConfig

from engines.types import LOWEST_LOGPROB, Sampling, TokenLogprob

GREEDY_BELOW = 1e-5
"""A temperature below this one means greedy."""
SEEDS = 2**32


def generation_config(
    sampling: Sampling,
    *,
    seed: int,
    max_new_tokens: int,
    eos_token_ids: tuple[int, ...],
    vocab_size: int,
    observer: Any,
) -> GenerationConfig:
    """One output. `observer`: of the sampler's row, None where there is nothing to observe.

    Of what `sampling` asks, this leaves out what `edits.py` does.
    """
    greedy = sampling.temperature < GREEDY_BELOW
    stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        temperature=1.0 if greedy else sampling.temperature,
        top_k=1 if greedy else min(sampling.top_k, vocab_size),
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        random_seed=seed % SEEDS,
        stop_token_ids=sorted(stops),
        logprobs=None if sampling.logprobs is None else max(1, sampling.logprobs),  # of none, it would give none
        logits_processors=None if observer is None else [observer],
    )


def prompt_config(observer: Any) -> GenerationConfig:
    """Compute the prompt, and the one token that LMDeploy insists on."""
    return GenerationConfig(max_new_tokens=1, top_k=1, temperature=1.0, logits_processors=[observer])


def token_logprob(token_id: int, logprobs: Mapping[int, float], count: int) -> TokenLogprob:
    """`logprobs`: of the token and of the likeliest ones, as many as anyone in the batch has asked for."""
    values = {token: max(float(value), LOWEST_LOGPROB) for token, value in logprobs.items()}
    best = sorted(values.items(), key=lambda item: -item[1])[:count]
    return TokenLogprob(int(token_id), values[token_id], tuple(best))
