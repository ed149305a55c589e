"""Measuring a model with benchmarks."""

from typing import ClassVar

from pydantic import Field

from engines.params.base import Strings
from engines.params.deploy import DeployParams


class EvalParams(DeployParams):
    """Measuring a model with benchmarks, served for the purpose or already served elsewhere."""

    starred: ClassVar = frozenset({"eval_dataset", "eval_url"})

    eval_dataset: Strings = ()
    """Benchmarks to run."""
    eval_limit: int | None = Field(None, ge=1)
    """Questions taken from each benchmark. All unless given."""
    eval_output_dir: str = "eval_output"
    """Folder for scores and answers."""
    temperature: float = Field(0.0, ge=0)
    """Temperature of the answers; 0: the likeliest tokens, so that scores can be repeated."""
    verbose: bool = False
    """Log every request, where the model is served for the evaluation."""
    eval_num_proc: int | None = Field(None, ge=1)
    """Questions asked at once. 256 for text models and 16 for multimodal ones unless given."""
    eval_url: str | None = None
    """Address of a running server to measure, such as http://localhost:8000/v1. `model` is served for the evaluation
    unless given."""
