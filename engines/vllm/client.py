"""vLLM as the server sees it. The server needs no vLLM: only the other process does."""

import sys
from pathlib import Path

from engines.process.client import ProcessEngine
from engines.process.config import PATIENCE, Patience
from engines.process.life import Program
from engines.process.resources import thread_environment
from engines.setup.install import require_vllm
from engines.vllm.config import VllmConfig


class VllmEngine(ProcessEngine):
    """vLLM, in its own process."""

    def __init__(self, config: VllmConfig, *, max_num_queued_reqs: int, patience: Patience = PATIENCE) -> None:
        """Raises UnsupportedModel where vLLM is not installed."""
        require_vllm()
        program = Program(
            command=(sys.executable, "-m", "engines.vllm.process"),
            environment=environment(config),
            config=config,
            max_num_seqs=config.max_num_seqs,
        )
        super().__init__(program, max_num_queued_reqs=max_num_queued_reqs, patience=patience)


def environment(config: VllmConfig) -> dict[str, str]:
    """The variables by which vLLM is told what it has no arguments for."""
    return {
        **thread_environment(config.threads),
        # As many threads as were asked for, and on any core: pinned ones collapse where others want the same core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The process that starts them has threads: a fork of it may hang.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_CONFIG_PATH": str(Path(__file__).with_name("logging.json")),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
