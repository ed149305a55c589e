"""What can be asked of LMDeploy's parts alone, by its own Python."""

import json
import subprocess
from typing import Any

from engines.setup.install import import_folder
from tests.engines.lmdeploy.engines import lmdeploy_or_skip


def run(module: str) -> Any:
    """What a module beside this one prints as the last line."""
    done = subprocess.run(
        [str(lmdeploy_or_skip()), "-m", f"tests.engines.lmdeploy.{module}"],
        env={"PYTHONPATH": str(import_folder()), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_lora_kernel_computes_with_what_lies_in_a_slot_now() -> None:
    errors = run("lora_kernel")
    assert errors["before"] < 2e-3 and errors["after"] < 2e-3


def test_settings_become_those_of_each_of_its_engines() -> None:
    told = run("engine_config")
    common = {
        "dtype": "bfloat16",
        "tp": 2,
        "session_len": 1024,
        "cache_max_entry_count": 0.5,
        "quant_policy": 8,
        "max_batch_size": 32,
        "enable_prefix_caching": False,
        "max_prefill_token_num": 512,
        "enable_metrics": False,
    }
    assert common.items() <= told["pytorch"].items() and common.items() <= told["turbomind"].items()
    pytorch = {"block_size": 32, "eager_mode": True, "logprobs_mode": "raw_logprobs", "adapters": {"a": "/a"}}
    assert pytorch.items() <= told["pytorch"].items()
    assert told["turbomind"]["cache_block_seq_len"] == 32
