"""Prepared data, kept in the user's cache until the data or its preparation changes."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.params.about import facts
from engines.setup.cache import cache_folder
from training.data.sources import Source
from training.params.sft import SftParams

FORMAT = 2
"""Raise it when the preparation changes."""

Made = tuple[Any, Any | None, list[str]]
"""Training data, validation data, notes."""


def kept(
    params: SftParams, learns: str, limit: int | None, tokenizer: Any, found: Sequence[Source], make: Callable[[], Made]
) -> Made:
    """What `make` returns, made at most once. Data that is in no file here is prepared anew: it may have changed."""
    if not all(source.files for source in found):
        return make()
    folder = cache_folder() / "data" / _key(params, learns, limit, tokenizer, found)
    if not folder.is_dir():
        _write(folder, make())
    return _read(folder)


def _key(params: SftParams, learns: str, limit: int | None, tokenizer: Any, found: Sequence[Source]) -> str:
    stats = [(str(path.resolve()), path.stat()) for source in found for path in source.files]
    read = {name for name, said in facts(type(params)) if said.prepares}
    content = {
        "format": FORMAT,
        "params": params.model_dump(mode="json", include=read),
        "columns": [dict(source.columns) for source in found],
        "learns": learns,
        "limit": limit,
        "tokenizer": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab(),
        "template": tokenizer.chat_template,
        "special": [tokenizer.bos_token, tokenizer.eos_token],
        "files": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _write(folder: Path, made: Made) -> None:
    """All of it or nothing, also where another process does the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        train, evaluation, notes = made
        train.save_to_disk(str(partial / "train"))
        if evaluation is not None:
            evaluation.save_to_disk(str(partial / "evaluation"))
        (partial / "notes.json").write_text(json.dumps(notes))
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(folder: Path) -> Made:
    import datasets

    evaluation = folder / "evaluation"
    return (
        datasets.load_from_disk(str(folder / "train")),
        datasets.load_from_disk(str(evaluation)) if evaluation.is_dir() else None,
        json.loads((folder / "notes.json").read_text()),
    )
