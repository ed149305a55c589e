"""What a checkpoint's configuration says of its head: whether it classifies, and into what."""

from typing import Any

from engines.errors import UnsupportedModel
from engines.params.model import TaskType
from engines.types import Head

CLASSIFIER = "ForSequenceClassification"
SCORE = "score"
"""transformers' name of the head of a decoder that classifies."""
HEAD_NAMES = (SCORE, "classifier")
"""Modules of which PEFT saves one that is there, whatever the model calls it."""


def is_classifier(config: Any) -> bool:
    """Whether the checkpoint was saved as a model for sequence classification."""
    return any(name.endswith(CLASSIFIER) for name in getattr(config, "architectures", None) or ())


def task_of(config: Any) -> TaskType:
    return "seq_cls" if is_classifier(config) else "causal_lm"


def refuse_classifier(config: Any, engine: str) -> None:
    """Raises UnsupportedModel for a checkpoint that classifies, on an engine that is run to generate."""
    if is_classifier(config):
        message = f"the checkpoint classifies texts, and {engine} is run here to generate them: serve it by pt or vllm"
        raise UnsupportedModel(message, param="infer_backend")


def head_of(config: Any) -> Head:
    """The head of a model for sequence classification."""
    return Head(
        labels=tuple(str(label) for _, label in sorted(config.id2label.items())),
        problem_type=config.problem_type,
        padding=config.get_text_config().pad_token_id,
    )
