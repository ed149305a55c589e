"""The engine's process on a CPU, where LMDeploy's loop often finds nothing to do while outputs run, and rests."""

import itertools
from typing import Any

from tests.engines.lmdeploy import cpu_shim

BETWEEN_RESTS = 10
"""Steps."""


def forget_work() -> None:
    from lmdeploy.pytorch.engine.inputs_maker import InputsMakerAsync

    prefetch = InputsMakerAsync.prefetch_next_inputs
    steps = itertools.count(1)

    async def prefetch_or_forget(self: Any) -> Any:
        return (None, None) if next(steps) % BETWEEN_RESTS == 0 else await prefetch(self)

    InputsMakerAsync.prefetch_next_inputs = prefetch_or_forget


if __name__ == "__main__":
    cpu_shim.install()
    forget_work()

    from engines.lmdeploy.process import main

    main()
