"""What every engine refuses alike, before a request costs anything."""

from engines.errors import ContextLengthExceeded, InvalidRequest


def check_prompt(prompt_ids: list[int], *, vocab_size: int, max_model_len: int, more: int) -> None:
    """Refuse a prompt that is none, or leaves no room for `more` tokens.

    Raises InvalidRequest, ContextLengthExceeded.
    """
    if not prompt_ids:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if not all(0 <= token < vocab_size for token in prompt_ids):
        raise InvalidRequest(f"token ids must be below the vocabulary's {vocab_size}", param="prompt")
    if len(prompt_ids) + more > max_model_len:
        raise context_length_exceeded(max_model_len, f"your prompt has {len(prompt_ids)} tokens")


def context_length_exceeded(max_model_len: int, asked: str, *, param: str | None = None) -> ContextLengthExceeded:
    """The error of a request that does not fit; `asked` says what it asks for: "your prompt has 5 tokens"."""
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_model_len} tokens, prompt and output together. "
        f"However, {asked}. Please shorten the request.",
        param=param,
    )
