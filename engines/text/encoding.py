"""Token ids of a text, as `tokenizer.encode` has them, without what else it computes."""

from typing import Any


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    """Ids of the whole text. The places of tokens in it, which a prompt has no use for, take a third of the memory."""
    own = getattr(type(tokenizer), "_encode_plus", None)
    if getattr(own, "__qualname__", "") != "TokenizersBackend._encode_plus":
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return ids
    tokenizer.set_truncation_and_padding(
        padding_strategy="do_not_pad",
        truncation_strategy="do_not_truncate",
        max_length=None,
        stride=0,
        pad_to_multiple_of=None,
        padding_side=None,
    )
    backend = tokenizer.backend_tokenizer
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    ids = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
    return ids
