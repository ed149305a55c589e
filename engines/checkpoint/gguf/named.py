"""Whether a model is named by a GGUF file, and what a model is called, for what must not load a model's libraries."""

from pathlib import Path, PurePath

SUFFIX = ".gguf"
SAYS_NOTHING = "model.gguf"
"""What a GGUF file is called where its folder has the model's name."""


def is_gguf(model: str) -> bool:
    """Whether a model is named by a GGUF file, and not by a folder or an id on the hub."""
    return model.endswith(SUFFIX) and not Path(model).expanduser().is_dir()


def name_of(model: str) -> str:
    """What a folder, hub id or GGUF file is called: its last part, without `.gguf`. A file that is called `model.gguf`
    has the name of its folder."""
    path = PurePath(model)
    says_nothing = path.name.lower() == SAYS_NOTHING and path.parent.name
    return path.parent.name if says_nothing else path.name.removesuffix(SUFFIX)
