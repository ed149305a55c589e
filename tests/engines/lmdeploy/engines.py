"""The LMDeploy engine on a CPU, for tests."""

from pathlib import Path
from typing import Any

import pytest

from engines.lmdeploy.client import LmdeployEngine
from engines.lmdeploy.config import LmdeployConfig
from engines.setup.install import NotInstalled, require_lmdeploy


def lmdeploy_or_skip() -> Path:
    """The Python of LMDeploy's environment. Skips the test, with the command that installs it, where there is none."""
    try:
        return require_lmdeploy()
    except NotInstalled as error:
        pytest.skip(error.message)


def lmdeploy_on_cpu(model: str, *, module: str = "on_cpu", **settings: Any) -> LmdeployEngine:
    """Not started. `module`, beside this file, is what its process runs; `settings` are those of `LmdeployConfig`."""
    lmdeploy_or_skip()
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "block_size": 16,
        "enforce_eager": True,
        "max_num_seqs": 16,
        "max_lora_rank": 8,
    }
    return LmdeployEngine(
        LmdeployConfig(model=model, **defaults | settings),
        max_num_queued_reqs=64,
        threads=1,
        module=f"tests.engines.lmdeploy.{module}",
    )
