"""Prepared data in a folder, to be mapped into memory."""

import json
from pathlib import Path
from typing import Any

Made = tuple[Any | None, Any | None, list[str]]
"""Training data (None where it is streamed), validation data (None where there is none), notes."""
PARTS = ("train", "evaluation")


def save(made: Made, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    *sets, notes = made
    for name, data in zip(PARTS, sets, strict=True):
        if data is not None:
            data.save_to_disk(str(folder / name))
    (folder / "notes.json").write_text(json.dumps(notes))


def load(folder: Path) -> Made:
    import datasets

    train, evaluation = (
        datasets.load_from_disk(str(folder / name)) if (folder / name).is_dir() else None for name in PARTS
    )
    return train, evaluation, json.loads((folder / "notes.json").read_text())
