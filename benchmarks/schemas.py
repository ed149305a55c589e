"""JSON schemas that people wrote: a fixed choice of JSONSchemaBench's (Geng et al., 2025, arXiv:2501.10868).

Not part of this repository, since theirs states no license: `git clone https://github.com/guidance-ai/jsonschemabench
.bench/jsonschemabench`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.environments import HOME

FOLDER = HOME / "jsonschemabench" / "data"
SETS = (
    "Github_trivial", "Github_easy", "Github_medium", "Github_hard", "Glaiveai2K", "JsonSchemaStore", "Kubernetes",
    "Snowplow", "WashingtonPost",
)  # fmt: skip
"""Without Github_ultra, whose schemas are all longer than `MOST_CHARACTERS`."""
EACH = 23
"""Schemas of each set: 207 of all."""
MOST_CHARACTERS = 2000
"""The schema is in the prompt, too."""


@dataclass(frozen=True, slots=True)
class Named:
    name: str
    """Set and file."""
    schema: dict[str, Any]


def choose(folder: Path, sets: Iterable[str] = SETS, each: int = EACH) -> list[Named]:
    """The same ones wherever the data is the same, from each set in turn. Raises FileNotFoundError without the data."""
    by_set = (_of_set(folder / name, each) for name in sets)
    return [named for turn in zip_longest(*by_set) for named in turn if named is not None]


def _of_set(folder: Path, each: int) -> list[Named]:
    files = sorted(folder.iterdir(), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    short = [file for file in files if file.stat().st_size <= 10 * MOST_CHARACTERS]
    schemas = (Named(f"{folder.name}/{file.stem}", json.loads(file.read_text())) for file in short)
    fit = [named for named in schemas if len(json.dumps(named.schema)) <= MOST_CHARACTERS]
    return fit[:each]
