"""How much of what was to be predicted was predicted: of tokens, or of samples that have every token right."""

from typing import Any, Literal

import torch

from training.losses.answers import Learned


class Accuracy:
    """Counts from one log to the next."""

    def __init__(self) -> None:
        self._counts = torch.zeros(4, dtype=torch.long)  # right tokens, tokens, right samples, samples

    def add(self, learned: Learned) -> None:
        """A batch. The samples that no token is learned of do not count."""
        wrong = torch.unique(learned.rows[~learned.correct]).numel()
        samples = torch.unique(learned.rows).numel()
        tokens = learned.correct.numel()
        self._counts += torch.tensor([int(learned.correct.sum()), tokens, samples - wrong, samples])

    def taken(self, accelerator: Any, strategy: Literal["seq", "token"], prefix: str) -> dict[str, float]:
        """Over all processes; counting begins anew."""
        counts = accelerator.reduce(self._counts.to(accelerator.device), reduction="sum").tolist()
        self._counts.zero_()
        right_tokens, tokens, right_samples, samples = counts
        if strategy == "seq":
            return {f"{prefix}sequence_accuracy": right_samples / samples} if samples else {}
        return {f"{prefix}token_accuracy": right_tokens / tokens} if tokens else {}
