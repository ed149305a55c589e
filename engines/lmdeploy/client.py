"""The LMDeploy engine as the server sees it. Free of LMDeploy: that lives in another environment."""

import os
from pathlib import Path
from typing import ClassVar

from engines.errors import UnsupportedModel
from engines.lmdeploy.config import LmdeployConfig
from engines.process_engine import ProcessEngine, Program, thread_environment

PYTHON = "TUNESERVE_LMDEPLOY_PYTHON"
"""The variable that names the Python of an environment with LMDeploy, in place of the installed one."""
INSTALL = "python -m engines.install lmdeploy"


class LmdeployEngine(ProcessEngine):
    """LMDeploy, in a process of its own and in its own environment."""

    program: ClassVar = "engines.lmdeploy.process"

    def __init__(self, config: LmdeployConfig, *, max_num_queued_reqs: int, threads: int | None = None) -> None:
        """Raises UnsupportedModel where LMDeploy is not installed."""
        python = lmdeploy_python()
        if python is None:
            message = f"LMDeploy has an environment of its own, which is not installed: run `{INSTALL}`"
            raise UnsupportedModel(message, param="infer_backend")
        program = Program(
            command=(str(python), "-m", self.program),
            environment=thread_environment(threads),
            config=config,
            max_num_seqs=config.max_batch_size,
        )
        super().__init__(program, max_num_queued_reqs=max_num_queued_reqs)


def lmdeploy_python() -> Path | None:
    """The Python of LMDeploy's environment, None where there is none."""
    named = os.environ.get(PYTHON)
    return Path(named) if named else None
