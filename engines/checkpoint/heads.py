"""What a checkpoint's configuration says of its head: whether it classifies, and into what."""

from typing import Any

from engines.types import Head

CLASSIFIER = "ForSequenceClassification"


def is_classifier(config: Any) -> bool:
    """Whether the checkpoint was saved as a model for sequence classification."""
    return any(name.endswith(CLASSIFIER) for name in getattr(config, "architectures", None) or ())


def head_of(config: Any) -> Head:
    """The head of a model for sequence classification."""
    return Head(
        labels=tuple(str(label) for _, label in sorted(config.id2label.items())),
        problem_type=config.problem_type,
        padding=config.get_text_config().pad_token_id,
    )
