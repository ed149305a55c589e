"""What our settings become in LMDeploy's own, for both of its engines. Run by the Python of LMDeploy's environment."""

import dataclasses
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from engines.capabilities import AdapterSupport
from engines.lmdeploy.adapters import adaptable
from engines.lmdeploy.config import LmdeployConfig
from engines.lmdeploy.library import Library, engine_config
from engines.lmdeploy.rebuild import Rebuild
from tests.engines.pt.tiny import CONFIGS

SETTINGS: dict[str, Any] = {
    "model": "m",
    "dtype": "bfloat16",
    "tp": 2,
    "max_model_len": 1024,
    "cache_max_entry_count": 0.5,
    "quant_policy": 8,
    "max_num_seqs": 32,
    "enforce_eager": True,
    "block_size": 32,
    "enable_prefix_caching": False,
    "max_num_batched_tokens": 512,
}


def support_of(name: str) -> AdapterSupport:
    """Which adapters are served on such a model."""
    with TemporaryDirectory() as folder:
        CONFIGS[name]().save_pretrained(folder)
        slots = Rebuild(cast(Library, None), 1, 8, adaptable(folder))
        slots.close()
        return slots.support


def main() -> None:
    told: dict[str, Any] = {"experts": sorted(support_of("mixtral").experts)}
    for backend in ("pytorch", "turbomind"):
        config = LmdeployConfig(**SETTINGS, backend=backend)
        told[backend] = dataclasses.asdict(engine_config(config, {"a": Path("/a")}))
    sys.stdout.write(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
