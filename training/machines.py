"""Several machines that train together: which of them this one is, and where they keep what they make."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from engines.errors import InvalidRequest

PORT = 29500
"""Unless MASTER_PORT names another."""
UNSEEN = (
    "this machine does not see the folder of the first one, {folder}: give an output_dir that all share, or have each "
    "keep its own checkpoints (true)"
)


@dataclass(frozen=True, slots=True)
class Machines:
    count: int = 1
    rank: int = 0
    """Number of this one, from 0."""
    address: str = "127.0.0.1"
    """Where the first one is met."""
    port: int = PORT

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Self:
        """By the variables of torch and of the reference. Raises InvalidRequest."""
        count, rank, port = (_number(environment, name) for name in ("NNODES", "NODE_RANK", "MASTER_PORT"))
        count = 1 if count is None else count
        if count == 1:
            return cls()
        if rank is None or rank >= count:
            raise InvalidRequest(f"NODE_RANK has to number this machine, from 0 to {count - 1}")
        if "MASTER_ADDR" not in environment:
            raise InvalidRequest("MASTER_ADDR has to say where the machine with NODE_RANK 0 is met")
        return cls(count, rank, environment["MASTER_ADDR"], port or PORT)

    @classmethod
    def of_words(cls, words: Sequence[str]) -> Self:
        if not words:
            return cls()
        count, rank, address, port = words
        return cls(int(count), int(rank), address, int(port))

    def as_words(self) -> list[str]:
        return [str(each) for each in astuple(self)]

    def for_torchrun(self) -> list[str]:
        if self.count == 1:
            return ["--standalone"]
        names = ("--nnodes", "--node-rank", "--master-addr", "--master-port")
        return [word for pair in zip(names, self.as_words(), strict=True) for word in pair]


ALONE = Machines()


def _number(environment: Mapping[str, str], name: str) -> int | None:
    given = environment.get(name)
    if given is not None and not (given.isdecimal() and (int(given) > 0 or name == "NODE_RANK")):
        raise InvalidRequest(f"{name} is a number, not {given!r}")
    return None if given is None else int(given)


def common_folder(mine: Path, *, rank: int, count: int) -> Path:
    """The first process's folder, as process `rank` of the `count` on all machines asks for it. `mine`: that of its own
    machine. Raises InvalidRequest in all where one of them does not see it."""
    from torch.distributed import PrefixStore, TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])  # torchrun's, for its processes
    store = PrefixStore("folder", TCPStore(address, port, is_master=False))
    if rank == 0:
        mark = mine / f".machines-{uuid4().hex}"
        mark.touch()
        store.set("mark", str(mark))
    mark = Path(store.get("mark").decode())
    store.set(f"sees-{rank}", str(mark.exists()))
    all_see = all(store.get(f"sees-{each}") == b"True" for each in range(count))
    if rank == 0:
        mark.unlink()
    if not all_see:
        raise InvalidRequest(UNSEEN.format(folder=mark.parent), param="save_on_each_node")
    return mark.parent
