"""Prepared data, kept in the user's cache until the data or its preparation changes, or room is needed.

What was not used for LONGEST goes, and of the rest what was not used for longest, until it takes MOST at most; what was
just made or used stays whatever it takes. A process that maps data into memory holds a lock meanwhile, so that none
goes from under it; once it is mapped, it may go.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.params.about import facts
from engines.setup.cache import cache_folder
from training.data.encode import Encoder
from training.data.saved import Made, load, save
from training.data.sources import Source
from training.params.sft import SftParams

FORMAT = 6
"""Raise it when the preparation changes."""
MOST = 20 << 30
"""Bytes of all that is kept."""
LONGEST = 30 * 86400
"""Seconds for which something unused is kept."""
LEFT_BEHIND = 2 * 86400
"""Seconds after which unfinished data is taken as left behind by a process that died."""
USED = "notes.json"
"""The file whose time says when data was last used."""


def cached_data() -> Path:
    return cache_folder() / "data"


def kept(
    params: SftParams, encoder: Encoder, tokenizer: Any, found: Sequence[Source], make: Callable[[], Made]
) -> Made:
    """What `make` returns, made at most once. Data that is in no file here is prepared anew: it may have changed."""
    if not all(source.files for source in found):
        return make()
    folder = cached_data() / _key(params, encoder, tokenizer, found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(fcntl.LOCK_SH):
        if folder.is_dir():
            os.utime(folder / USED)
            return load(folder)
    return _keep(make(), folder)


def _key(params: SftParams, encoder: Encoder, tokenizer: Any, found: Sequence[Source]) -> str:
    stats = [(str(path.resolve()), path.stat()) for source in found for path in source.files]
    read = {name for name, said in facts(type(params)) if said.prepares}
    content = {
        "format": FORMAT,
        "params": params.model_dump(mode="json", include=read),
        "columns": [[dict(source.columns), sorted(source.hidden)] for source in found],
        "learns": encoder.learns,
        "loss_scale": repr(encoder.loss_scale),
        "limit": encoder.max_length,
        "tokenizer": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab(),
        "template": tokenizer.chat_template,
        "special": [tokenizer.bos_token, tokenizer.eos_token],
        "files": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _keep(made: Made, folder: Path) -> Made:
    """Store the data whole or not at all, also where another process stores the same."""
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        save(made, partial)
        with _locked(fcntl.LOCK_EX):
            if not folder.is_dir():
                partial.rename(folder)
            _make_room(folder)
            return load(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_room(needed: Path) -> None:
    """Remove what the rule at the top names, except `needed`. The caller holds the lock."""
    now = time.time()
    for path in cached_data().glob(".*-*"):
        if now - path.stat().st_mtime > LEFT_BEHIND:
            shutil.rmtree(path, ignore_errors=True)
    others = [path for path in cached_data().glob("[!.]*") if path != needed and (path / USED).is_file()]
    room = MOST - _size(needed)
    for path in sorted(others, key=lambda path: -(path / USED).stat().st_mtime):
        room -= _size(path)
        if room < 0 or now - (path / USED).stat().st_mtime > LONGEST:
            gone = path.rename(path.with_name(f".gone-{path.name}"))  # half of it is never taken for all
            shutil.rmtree(gone, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _locked(kind: int) -> Iterator[None]:
    with (cached_data() / ".lock").open("w") as lock:
        fcntl.flock(lock, kind)
        yield
