"""Choices that transformers' trainer offers by name, for parameters of that name.

A test compares them with the library.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from engines.params.base import listed

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]

Reporter = Literal[
    "all",
    "none",
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]


def _alone(reporters: tuple[Reporter, ...]) -> tuple[Reporter, ...]:
    for word in ("all", "none"):
        if word in reporters and len(reporters) > 1:
            raise ValueError(f"{word} stands alone")
    return reporters


Reporters = Annotated[tuple[Reporter, ...], BeforeValidator(listed), AfterValidator(_alone)]
