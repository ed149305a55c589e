"""The file in which names and aliases outlive the server.

It is replaced as a whole, by one rename: never half written.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.adapters.disk import sync
from engines.errors import TuneserveError


class Record(BaseModel):
    """An adapter as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    snapshot: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source: str
    pinned: bool
    created: int


class State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    adapters: dict[str, Record] = {}
    aliases: dict[str, str] = {}


class BrokenState(TuneserveError):
    """The file is not one that we have written."""

    code = "broken_state"


def read_state(file: Path) -> State:
    """The state that was written last; an empty one before. Raises BrokenState."""
    try:
        return State.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return State()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = f"{file} is not of this version of tuneserve ({first['msg']}): restore it, or remove it to begin anew"
        raise BrokenState(message) from None


def write_state(file: Path, state: State) -> None:
    """Replace the file, and return once that would outlive a loss of power."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as out:
        out.write(state.model_dump_json(indent=2).encode())
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
    sync(file.parent)
