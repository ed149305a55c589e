"""What keeps a worker's imports short: they are most of what passes between a job's start and its first step."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

from engines.process.imports import uncollected

Function = Callable[..., Any]


@contextmanager
def short_imports() -> Iterator[None]:
    """Within, nothing is collected, as what is imported stays; and functions are compiled when they are called first.

    bitsandbytes, which PEFT imports wherever it is installed, has some compiled as it is imported: that loads torch's
    whole compiler, for what a training on weights that it has not quantised never calls.
    """
    import torch

    compiled_now, torch.compile = torch.compile, partial(_compiled_later, torch.compile)
    try:
        with uncollected():
            yield
    finally:
        torch.compile = compiled_now


@contextmanager
def left_out(package: str) -> Iterator[None]:
    """Within, `package` is not there for those who look for it, unless it has been imported before.

    accelerate imports DeepSpeed, wherever it is installed, to see whether a model is one of its own.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to say that it is not there
    try:
        yield
    finally:
        del sys.modules[package]


def _compiled_later(compiled: Function, model: Function | None = None, **options: Any) -> Any:
    """`torch.compile`, but for modules, put off to the first call."""
    import torch

    if model is None:
        return partial(_compiled_later, compiled, **options)
    if isinstance(model, torch.nn.Module):
        return compiled(model, **options)

    @cache
    def found() -> Any:
        return compiled(model, **options)

    @wraps(model)
    def call(*given: Any, **named: Any) -> Any:
        return found()(*given, **named)

    return call
