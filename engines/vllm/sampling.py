"""From our requests to vLLM's, and from its outputs to ours."""

from collections.abc import Iterator

from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from engines.capabilities import Capabilities
from engines.errors import EngineFailure, InvalidRequest
from engines.text.grammar import to_lark
from engines.text.request_check import check_prompt
from engines.types import FinishReason, GenerationRequest, Sampling, TokenLogprob, TokenOutput

FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}
LARGEST_SEED = 2**63 - 1
MOST_TOKENS = {"allowed_token_ids": 1024, "logit_bias": 1024, "stop_token_ids": 128}
"""In these fields of a request, as vLLM's tables on a GPU have room for: one more ends the whole engine."""
MOST_BAD_WORDS, MOST_BAD_WORDS_TOKENS = 128, 1024


def check(request: GenerationRequest, capabilities: Capabilities) -> None:
    """Refuse what vLLM would not refuse, or not in our words. Raises InvalidRequest."""
    sampling, limit = request.sampling, capabilities.max_model_len
    # One token more in any case: vLLM does not compute a prompt for its own sake.
    check_prompt(request.prompt_ids, vocab_size=capabilities.vocab_size, max_model_len=limit, more=1)
    if sampling.num_beams > 1:
        raise InvalidRequest("this engine has no beam search", param="num_beams")
    if not all(0 <= token < capabilities.vocab_size for word in sampling.bad_words_ids for token in word):
        raise InvalidRequest("bad_words names tokens outside the vocabulary", param="bad_words")
    _check_lengths(sampling, capabilities)
    if sampling.allowed_token_ids is not None and not _allowed_first(sampling, capabilities.eos_token_ids):
        raise InvalidRequest("the parameters of this request forbid every token")


def _check_lengths(sampling: Sampling, capabilities: Capabilities) -> None:
    for name, most in MOST_TOKENS.items():
        tokens = getattr(sampling, name)
        own = len(capabilities.eos_token_ids) if name == "stop_token_ids" else 0
        if tokens is not None and len(tokens) > most - own:
            raise InvalidRequest(f"vLLM takes at most {most - own} tokens in {name}", param=name)
    words = sampling.bad_words_ids
    if len(words) > MOST_BAD_WORDS or sum(map(len, words)) > MOST_BAD_WORDS_TOKENS:
        message = f"vLLM takes at most {MOST_BAD_WORDS} bad words, of {MOST_BAD_WORDS_TOKENS} tokens together"
        raise InvalidRequest(message, param="bad_words")


def _allowed_first(sampling: Sampling, eos_token_ids: tuple[int, ...]) -> set[int]:
    """What of the allowed tokens can come first."""
    allowed = {*(sampling.allowed_token_ids or ())} - {word[0] for word in sampling.bad_words_ids if len(word) == 1}
    return allowed - {*eos_token_ids, *sampling.stop_token_ids} if sampling.min_new_tokens else allowed


def to_vllm(
    request: GenerationRequest, index: int, capabilities: Capabilities, grammar_end: int | None
) -> SamplingParams:
    """Return the parameters of one of the request's outputs.

    `grammar_end`: the token that ends structured output. Raises VLLMValidationError for what vLLM does not take.
    """
    sampling = request.sampling
    # None is no request to vLLM: the one token that comes then is not told.
    max_tokens = max(1, min(sampling.max_new_tokens, capabilities.max_model_len - len(request.prompt_ids)))
    ends = {*capabilities.eos_token_ids, *sampling.stop_token_ids}
    stops = {*sampling.stop_token_ids} if sampling.ignore_eos else ends
    structured = None
    if sampling.structured is not None:
        structured = StructuredOutputsParams(grammar=to_lark(sampling.structured))
        stops = stops | ({grammar_end} if grammar_end is not None else set())  # nothing can follow it
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_new_tokens, max_tokens),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
        stop_token_ids=sorted(token for token in stops if token < capabilities.vocab_size),
        ignore_eos=True,  # the end-of-sequence tokens are among the stop tokens
        seed=None if sampling.seed is None else (sampling.seed + index) & LARGEST_SEED,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        flat_logprobs=True,
        structured_outputs=structured,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )
    # vLLM makes these of texts and of the tokenizer's end-of-sequence token: there is no other way to give it tokens.
    params._bad_words_token_ids = [list(word) for word in sampling.bad_words_ids] or None
    params._all_stop_token_ids = {token for token in ends if 0 <= token < capabilities.vocab_size}
    return params


def to_output(index: int, made: CompletionOutput, logprobs: int | None) -> TokenOutput:
    """Return what vLLM's step added to an output, with as many `logprobs` as were asked for. Raises EngineFailure where
    vLLM gave it up."""
    if made.finish_reason is not None and made.finish_reason not in FINISH_REASONS:
        raise EngineFailure("vLLM failed while it computed this request")
    stopped = made.finish_reason == "stop" and isinstance(made.stop_reason, int)
    return TokenOutput(
        index=index,
        token_ids=tuple(made.token_ids),
        logprobs=None if made.logprobs is None else _output_logprobs(made, logprobs or 0),
        finish_reason=None if made.finish_reason is None else FINISH_REASONS[made.finish_reason],
        stop_token_id=made.stop_reason if stopped else None,
    )


def _output_logprobs(made: CompletionOutput, count: int) -> tuple[TokenLogprob, ...]:
    # Where an output ends without a token, vLLM tells the logprobs of all tokens once more.
    return tuple(one for one in token_logprobs(made.logprobs, count) if one is not None) if made.token_ids else ()


def token_logprobs(flat: FlatLogprobs, count: int) -> Iterator[TokenLogprob | None]:
    """Log-probabilities by position: the token itself, then the `count` likeliest ones; None where there are none.

    Where outputs are not fetched as fast as steps make them, vLLM joins those of several steps, and then has each token
    of a position once: one of the likeliest is told as the position's own alone, with its rank among them.
    """
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        if start == end:
            yield None
            continue
        token, logprob, rank = flat.token_ids[start], flat.logprobs[start], flat.ranks[start]
        likeliest = [*zip(flat.token_ids[start + 1 : end], flat.logprobs[start + 1 : end], strict=True)]
        if len(likeliest) < count and rank is not None and rank <= count and token not in dict(likeliest):
            likeliest.insert(rank - 1, (token, logprob))
        top = tuple((one, value) for one, value in likeliest if value != float("-inf"))
        yield TokenLogprob(token, logprob, top, rank)
