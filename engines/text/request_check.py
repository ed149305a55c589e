"""What every engine refuses alike, before a request costs anything."""

from engines.errors import ContextLengthExceeded, InvalidRequest


def check_prompt(prompt_ids: list[int], *, vocab_size: int, max_model_len: int, more: int) -> None:
    """Refuse a prompt that is none, or leaves no room for `more` tokens. Raises InvalidRequest, ContextLengthExceeded."""
    if not prompt_ids:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if not all(0 <= token < vocab_size for token in prompt_ids):
        raise InvalidRequest(f"token ids must be below the vocabulary's {vocab_size}", param="prompt")
    if len(prompt_ids) + more > max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has {len(prompt_ids)}."
        )
