"""What LMDeploy cannot run is refused in one sentence, at once, and for good."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from engines.errors import UnsupportedModel
from engines.lmdeploy.client import LmdeployEngine
from engines.lmdeploy.config import LmdeployConfig, for_several_owners, lmdeploy_config
from engines.params.deploy import DeployParams
from engines.setup.install import NotInstalled
from engines.types import EngineState
from tests.engines.lmdeploy.engines import config_on_cpu, lmdeploy_or_skip, run_alone
from tests.engines.pt.tiny import CONFIGS, save


def test_models_and_settings_that_it_cannot_run(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    reasons: dict[str, LmdeployConfig] = {
        "OPTForCausalLM": config_on_cpu(str(save(CONFIGS["opt"](), tmp_path / "opt", tokenizer=True))),
        "broken": config_on_cpu(str(broken)),
        "quant_policy: 3": config_on_cpu(str(model), quant_policy=3),
        "kernel_block_size must be >= 16": config_on_cpu(str(model), block_size=8),
        "memory": config_on_cpu(str(model), cache_max_entry_count=1e-6),
        "TurboMind": config_on_cpu(str(model), backend="turbomind", dtype="bfloat16"),
    }
    told = run_alone("refused", json.dumps(msgspec.to_builtins(reasons)))
    for reason, message in told.items():
        assert reason in message and "\n" not in message
    assert told.keys() == reasons.keys()


async def test_a_machine_without_a_gpu(model: Path) -> None:
    lmdeploy_or_skip()
    engine = LmdeployEngine(LmdeployConfig(model=str(model)), max_num_queued_reqs=1)
    with pytest.raises(UnsupportedModel, match=r"\ALMDeploy needs a CUDA GPU, and none is found\Z"):
        await engine.start()
    assert engine.health().state is EngineState.FAILED
    await engine.stop()


def test_an_environment_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESERVE_LMDEPLOY_PYTHON", "")
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path))
    with pytest.raises(NotInstalled, match=re.escape("python -m engines.setup.install lmdeploy")):
        LmdeployEngine(LmdeployConfig(model="m"), max_num_queued_reqs=1)


def test_parameters_of_deploy() -> None:
    params = DeployParams(
        model="m", max_length=100, max_num_seqs=7, enforce_eager=True, max_num_batched_tokens=50, seed=3
    )
    assert lmdeploy_config(params) == LmdeployConfig(
        model="m",
        max_model_len=100,
        max_num_seqs=7,
        enforce_eager=True,
        max_num_batched_tokens=50,
        seed=3,
        max_loras=params.max_loras,
        max_lora_rank=params.max_lora_rank,
    )


def test_turbomind_caches_no_prefixes_of_several_owners() -> None:
    params = DeployParams(model="m", lmdeploy_backend="turbomind")
    assert lmdeploy_config(params).enable_prefix_caching
    assert not for_several_owners(lmdeploy_config(params), params).enable_prefix_caching
    given = DeployParams(model="m", lmdeploy_backend="turbomind", enable_prefix_caching=True)
    with pytest.raises(UnsupportedModel, match="cached prefixes of several keys") as refused:
        for_several_owners(lmdeploy_config(given), given)
    assert refused.value.param == "enable_prefix_caching"
