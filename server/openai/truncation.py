"""vLLM's `truncate_prompt_tokens`: a prompt that is too long is cut instead of refused."""

from typing import Annotated

from pydantic import AfterValidator, Field

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest
from engines.text.truncation import Side, Truncation
from server.http.body import RequestBody

AS_MANY_AS_FIT = -1


def _some(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("Input should be -1, or 1 or more: a prompt has at least one token")
    return tokens


class TruncationFields(RequestBody):
    truncate_prompt_tokens: Annotated[int, Field(ge=AS_MANY_AS_FIT), AfterValidator(_some)] | None = None
    """vLLM's: most tokens of each prompt that are kept; -1: as many as fit the context beside the output."""
    truncation_side: Side | None = None
    """vLLM's: where the others are left out. Unless given, of prompts to go on from at the left, of those to embed at
    the right."""

    def truncation(self, capabilities: Capabilities, *, output: int, side: Side) -> Truncation | None:
        """`output`: tokens that must be left for it; `side`: where the request names none. Raises InvalidRequest."""
        length, limit = self.truncate_prompt_tokens, capabilities.max_model_len
        if length is None:
            if self.truncation_side is not None:
                self.ignored.add("truncation_side")
            return None
        if length > limit:
            raise InvalidRequest(
                f"'truncate_prompt_tokens' must be at most the {limit} tokens of the model's context, not {length}.",
                param="truncate_prompt_tokens",
            )
        if length == AS_MANY_AS_FIT:
            length = max(1, limit - max(1, output))
        return Truncation(length, self.truncation_side or side)
