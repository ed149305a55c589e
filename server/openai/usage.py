"""The tokens of an answer, counted as they come."""

from typing import Any

from engines.text.output_text import TextDelta


class Usage:
    def __init__(self, prompt_tokens: int, *, reasons: bool = False, predicted: bool = False) -> None:
        """`reasons`: the model's reasoning is told apart, and counted; `predicted`: so is what has come of the client's
        prediction."""
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        """As OpenAI counts them, with the tokens of a prediction that were tried in vain."""
        self.prediction_tokens = {"accepted": 0, "rejected": 0} if predicted else None
        self.reasoning_tokens = 0 if reasons else None
        self.cached_tokens: int | None = None

    def add(self, delta: TextDelta, *, reasoned: bool) -> None:
        tokens = len(delta.token_ids)
        self.completion_tokens += tokens
        if self.prediction_tokens is not None:
            self.prediction_tokens["accepted"] += delta.accepted_prediction_tokens
            self.prediction_tokens["rejected"] += delta.rejected_prediction_tokens
            self.completion_tokens += delta.rejected_prediction_tokens
        if reasoned:
            self.reasoning_tokens = (self.reasoning_tokens or 0) + tokens
        if delta.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + delta.cached_tokens

    def to_wire(self) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        details = {} if self.reasoning_tokens is None else {"reasoning_tokens": self.reasoning_tokens}
        if self.prediction_tokens is not None:
            details |= {f"{fate}_prediction_tokens": count for fate, count in self.prediction_tokens.items()}
        if details:
            usage["completion_tokens_details"] = details
        return usage
