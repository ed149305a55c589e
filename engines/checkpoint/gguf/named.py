"""Whether a model is named by a GGUF file, for what must not load a model's libraries."""

from pathlib import Path

SUFFIX = ".gguf"


def is_gguf(model: str) -> bool:
    """Whether a model is named by a GGUF file, and not by a folder or an id on the hub."""
    return model.endswith(SUFFIX) and not Path(model).expanduser().is_dir()
