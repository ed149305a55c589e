"""Which of the processes of a training this one is, as torchrun says in the environment."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Processes:
    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Its number among those of this machine."""
    local_count: int = 1
    run: str = ""
    """A name that this start of the training has alone on this machine, the same in all its processes here."""
    machines: int = 1

    @classmethod
    def of_environment(cls) -> "Processes":
        def number(name: str, default: int) -> int:
            return int(os.environ.get(name, default))

        return cls(
            rank=number("RANK", 0),
            count=number("WORLD_SIZE", 1),
            local_rank=number("LOCAL_RANK", 0),
            local_count=number("LOCAL_WORLD_SIZE", 1),
            machines=number("GROUP_WORLD_SIZE", 1),
            run=f"{os.getppid()}-{number('TORCHELASTIC_RESTART_COUNT', 0)}-{number('MASTER_PORT', 0)}",
        )
