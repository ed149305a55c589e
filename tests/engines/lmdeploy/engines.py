"""The LMDeploy engine on a CPU, for tests."""

import json
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.lmdeploy.client import LmdeployEngine
from engines.lmdeploy.config import LmdeployConfig
from engines.setup.install import NotInstalled, import_folder, require_lmdeploy
from tests.until import PATIENCE


def lmdeploy_or_skip() -> Path:
    """The Python of LMDeploy's environment. Skips the test, with the command that installs it, where there is none."""
    try:
        return require_lmdeploy()
    except NotInstalled as error:
        pytest.skip(error.message)


def run_alone(module: str, *words: str) -> Any:
    """What a module beside this one, run by LMDeploy's Python, prints as the last line."""
    done = subprocess.run(
        [str(lmdeploy_or_skip()), "-m", f"tests.engines.lmdeploy.{module}", *words],
        env={"PYTHONPATH": str(import_folder()), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def python_on_cpu(folder: Path) -> Path:
    """A Python that runs LMDeploy's process with the shim for CPUs, whatever it is told to run. Raises NotInstalled."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {require_lmdeploy()} -m tests.engines.lmdeploy.on_cpu "$3"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def config_on_cpu(model: str, **settings: Any) -> LmdeployConfig:
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "block_size": 16,
        "enforce_eager": True,
        "max_num_seqs": 16,
        "max_lora_rank": 8,
    }
    return LmdeployConfig(model=model, **defaults | settings)


def lmdeploy_on_cpu(model: str, *, module: str = "on_cpu", **settings: Any) -> LmdeployEngine:
    """Not started. `module`, beside this file, is what its process runs; `settings` are those of `LmdeployConfig`."""
    lmdeploy_or_skip()
    return LmdeployEngine(
        config_on_cpu(model, **settings),
        max_num_queued_reqs=64,
        threads=1,
        module=f"tests.engines.lmdeploy.{module}",
    )


@asynccontextmanager
async def with_two_slots(model: Path) -> AsyncIterator[LmdeployEngine]:
    """An engine that runs, with two slots, and steps so short that prompts are computed in several."""
    engine = lmdeploy_on_cpu(str(model), max_loras=2, max_num_batched_tokens=32)
    await engine.start()
    yield engine
    await engine.stop()
