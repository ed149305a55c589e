"""The pt engine as the server sees it."""

import sys

from engines.process.client import ProcessEngine
from engines.process.config import PATIENCE, Patience
from engines.process.life import Program
from engines.process.resources import thread_environment
from engines.pt.config import PtConfig


class PtEngine(ProcessEngine):
    """Our own engine, in its own process."""

    def __init__(self, config: PtConfig, *, max_num_queued_reqs: int, patience: Patience = PATIENCE) -> None:
        program = Program(
            command=(sys.executable, "-m", "engines.pt.process"),
            environment=thread_environment(config.threads),
            config=config,
            max_num_seqs=config.max_num_seqs,
        )
        super().__init__(program, max_num_queued_reqs=max_num_queued_reqs, patience=patience)
