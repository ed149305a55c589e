"""The LMDeploy engine as the server sees it. Free of LMDeploy: that lives in another environment."""

from engines.lmdeploy.config import LmdeployConfig
from engines.process.client import ProcessEngine
from engines.process.config import PATIENCE, Patience
from engines.process.life import Program
from engines.process.resources import thread_environment
from engines.setup.install import import_folder, require_lmdeploy


class LmdeployEngine(ProcessEngine):
    """LMDeploy, in a process of its own and in its own environment."""

    def __init__(
        self,
        config: LmdeployConfig,
        *,
        max_num_queued_reqs: int,
        patience: Patience = PATIENCE,
        threads: int | None = None,
        module: str = "engines.lmdeploy.process",
    ) -> None:
        """`module`: what the process runs. Raises UnsupportedModel where LMDeploy is not installed."""
        program = Program(
            command=(str(require_lmdeploy()), "-m", module),
            environment=thread_environment(threads) | {"PYTHONPATH": str(import_folder())},
            config=config,
            max_num_seqs=config.max_num_seqs,
        )
        super().__init__(program, max_num_queued_reqs=max_num_queued_reqs, patience=patience)
