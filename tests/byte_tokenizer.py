"""A tokenizer of single bytes and a few special tokens, to run grammars without a model."""

import random
from functools import cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

SPECIAL = ("<|end|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>", "<|python_tag|>")
TOKEN_IDS = {text: 256 + i for i, text in enumerate(SPECIAL)}
END = TOKEN_IDS["<|end|>"]
CLOSING = {*b'"]},', *TOKEN_IDS.values()}


class _Vocabulary:
    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), *(text.encode() for text in SPECIAL))
    special_token_ids = tuple(TOKEN_IDS.values())

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Vocabulary()))


def accepts(grammar: str, text: str, *, special: tuple[str, ...] = ()) -> bool:
    """Whether the grammar allows the text, with the markers in `special` written as single tokens, and may end
    there."""
    matcher = LLMatcher(tokenizer(), grammar, log_level=0)
    return matcher.consume_tokens(_encode(text, special)) and matcher.is_accepting()


def sample(grammar: str, rng: random.Random, limit: int = 4000) -> str:
    """Draw tokens among those the grammar allows until it ends; favours what comes to an end, to keep it short."""
    matcher = LLMatcher(tokenizer(), grammar, log_level=0)
    output: list[int] = []
    for _ in range(limit):
        allowed = _allowed(matcher)
        assert allowed, f"stuck after {_decode(output)!r}: {matcher.get_error()}"
        if END in allowed and (len(allowed) == 1 or rng.random() < 0.3):
            return _decode(output)
        token = _pick([token for token in allowed if token != END], rng)
        assert matcher.consume_token(token)
        output.append(token)
    raise AssertionError(f"no end after {limit} tokens: {_decode(output[:200])!r}")


def _pick(allowed: list[int], rng: random.Random) -> int:
    closing = [token for token in allowed if token in CLOSING]
    return rng.choice(closing) if closing and rng.random() < 0.4 else rng.choice(allowed)


def _allowed(matcher: LLMatcher) -> list[int]:
    mask = matcher.compute_bitmask()
    return [i for i in range(len(_Vocabulary.tokens)) if mask[i // 8] >> (i % 8) & 1]


def _encode(text: str, special: tuple[str, ...]) -> list[int]:
    for marker in special:
        if marker in text:
            before, after = text.split(marker, 1)
            return [*_encode(before, special), TOKEN_IDS[marker], *_encode(after, special)]
    return list(text.encode())


def _decode(tokens: list[int]) -> str:
    return b"".join(_Vocabulary.tokens[token] for token in tokens).decode()
