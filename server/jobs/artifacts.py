"""The files that all attempts of a job have made, by their paths in the job's folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.errors import NotFound
from training.folder import LOG
from training.params.saved_args import ARGS

OURS = frozenset({"task.json", ARGS, LOG})
"""Files that name folders of the server's machine, which no client gets. The log is told line by line, without them."""


def list_artifacts(folder: Path) -> list[dict[str, Any]]:
    """All of them, ordered by path, but for links and for what is still being written."""
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
        for attempt in sorted(_attempts(folder), key=lambda path: int(path.name))
        for path in sorted(attempt.rglob("*"))
        if path.is_file() and _is_shown(path, folder)
    ]


def find_artifact(folder: Path, name: str) -> Path:
    """Raises NotFound, in the same words whatever is there."""
    missing = NotFound(f"No such artifact: {name[:200]}", param="path")
    try:
        path = (folder / name).resolve()
        inside = any(path.is_relative_to(attempt.resolve()) for attempt in _attempts(folder))
        if not inside or path != folder.resolve() / name or not path.is_file() or not _is_shown(path, folder.resolve()):
            raise missing
    except (OSError, ValueError, RuntimeError):
        raise missing from None
    return path


def _attempts(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else iter(())


def _is_shown(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return not (path.is_symlink() or path.name in OURS or any(part.startswith(".") for part in parts))
