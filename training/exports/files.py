"""Files of a model or an adapter, copied without what only a training reads."""

import shutil
from pathlib import Path

from training.hub.upload import is_uploaded


def copy_files(folder: Path, target: Path) -> None:
    """Write what a model or an adapter is loaded with, and nothing else."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if is_uploaded(name.as_posix()):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
