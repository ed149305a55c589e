"""What clients of the API name on the Hugging Face hub, and what fetches it for their job.

Such a name stands in a job's parameters as `hf://org/set:en#500` until it was fetched. From then on the folder of what
was fetched stands there, and the job asks the hub no more.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engines.params.about import facts
from engines.params.base import Params

SCHEME = "hf://"


class Fetch(BaseModel):
    """Where what is fetched goes, and how much it may be."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    """The job's own: what lies there is replaced."""
    cache: Path
    """Files that other jobs have fetched, which are linked instead."""
    max_bytes: int
    """The most of all files of the job together, and of the cache."""


def names_on_hub(params: Params) -> Iterator[tuple[str, str, str]]:
    """Each name that is to be fetched, without SCHEME, behind its parameter and what that names."""
    for param, said in facts(type(params)):
        if said.names is not None:
            found = (name for name in listed(params, param) if name.startswith(SCHEME))
            yield from ((param, said.names, name.removeprefix(SCHEME)) for name in found)


def listed(params: Params, name: str) -> tuple[str, ...]:
    """What the parameter names, one thing or several."""
    value: Any = getattr(params, name)
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
