"""The LMDeploy engine on a CPU, for tests."""

from typing import Any, ClassVar

import pytest

from engines.lmdeploy.client import INSTALL, LmdeployEngine, lmdeploy_python
from engines.lmdeploy.config import LmdeployConfig


class LmdeployOnCpu(LmdeployEngine):
    program: ClassVar = "tests.engines.lmdeploy.on_cpu"


def lmdeploy_on_cpu(model: str, **settings: Any) -> LmdeployEngine:
    """Not started. `settings` are those of `LmdeployConfig`. Skips the test where LMDeploy is not installed."""
    if lmdeploy_python() is None:
        pytest.skip(f"LMDeploy is not installed: run `{INSTALL}`")
    defaults = {"dtype": "float32", "block_size": 16, "eager_mode": True, "max_batch_size": 16, "max_lora_rank": 8}
    config = LmdeployConfig(model=model, **defaults | settings)
    return LmdeployOnCpu(config, max_num_queued_reqs=64, threads=1)
