"""Logits of a head as what they mean, as vLLM has it: probabilities, or numbers as they are."""

import math

from engines.types import Head


def activated(logits: list[float], head: Head, *, asked: bool | None) -> list[float]:
    """One number for each label. `asked` False: the logits; else what the head's problem type says: the numbers of a
    regression as they are, a probability for each label of several that may hold at once, and of a single one, and else
    probabilities that sum to 1."""
    if asked is False or head.problem_type == "regression":
        return logits
    if head.problem_type == "multi_label_classification" or len(logits) == 1:
        return [sigmoid(logit) for logit in logits]
    return _softmax(logits)


def sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def _softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]
