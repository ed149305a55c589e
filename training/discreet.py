"""What clients of an API may see of a job, without the folders of the machine that it ran on: of a path, its last part.

The worker of such a job writes its messages and checkpoints so. What only this machine reads, such as args.json, keeps
whole paths.
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from engines.adapters.spec import CONFIG

ARGUMENTS = "training_args.bin"
"""A pickle of settings, paths among them, which nothing reads again."""
QUOTED = re.compile(r"""(?P<quote>['"`])~?(?P<path>/[^'"`\n]+)(?P=quote)""")
BARE = re.compile(r"""(?<![\w./-])~?(?P<path>/(?:[^\s/'"`,;:()<>\[\]]+/)+[^\s/'"`,;:()<>\[\]]*)""")
"""Of at least two parts: a slash may also stand before a word."""


def without_folders(text: str) -> str:
    """`text` with the last part of each absolute path in place of the path; addresses of the web stay."""
    quoted = QUOTED.sub(lambda found: found["quote"] + _last_part(found["path"]) + found["quote"], text)
    return BARE.sub(lambda found: _last_part(found["path"]), quoted)


def _last_part(path: str) -> str:
    return PurePosixPath(path).name


def make_discreet(checkpoint: Path) -> None:
    """Have a checkpoint that has not got its name yet tell no folders."""
    for arguments in checkpoint.rglob(ARGUMENTS):
        arguments.unlink()
    for card in checkpoint.rglob("README.md"):
        card.write_text(without_folders(card.read_text()))
    for name, field in ((CONFIG, "base_model_name_or_path"), ("trainer_state.json", "best_model_checkpoint")):
        for file in checkpoint.rglob(name):
            _shorten(file, field)


def _shorten(file: Path, field: str) -> None:
    content: dict[str, Any] = json.loads(file.read_text())
    if content.get(field) and Path(content[field]).is_absolute():
        file.write_text(json.dumps(content | {field: _last_part(content[field])}, indent=2) + "\n")
