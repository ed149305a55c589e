"""What vLLM refuses at its start, in words that say why; and an engine without adapters."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest

from engines.vllm.client import environment
from engines.vllm.config import VllmConfig
from tests.engines.vllm.tiny import FORKS, TINY, needs_vllm, save_for_vllm
from tests.quantized_folders import say_quantized

pytestmark = needs_vllm

POSITIONS = 1024
PATIENCE = 240
"""Seconds after which something has not happened."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = str(save_for_vllm(tmp_path_factory.mktemp("model"), positions=POSITIONS))
    unknown = tmp_path_factory.mktemp("unknown")
    config = {"architectures": ["NobodyForCausalLM"], "model_type": "llama", "max_position_embeddings": 64}
    (unknown / "config.json").write_text(json.dumps(config))
    headless = save_for_vllm(tmp_path_factory.mktemp("headless"), positions=POSITIONS)
    text = (headless / "config.json").read_text()
    (headless / "config.json").write_text(text.replace("ForCausalLM", "ForSequenceClassification"))
    packed = save_for_vllm(tmp_path_factory.mktemp("packed"), positions=POSITIONS)
    say_quantized(packed, {"quant_method": "compressed-tensors", "format": "pack-quantized"})
    fp8 = save_for_vllm(tmp_path_factory.mktemp("fp8"), positions=POSITIONS)
    say_quantized(fp8, {"quant_method": "fp8"})
    wrong = {
        "packed in float32": {"model": str(packed)},
        "quantised already": {"model": str(fp8), "torchao_bits": 8},
        "no head": {"model": str(headless)},
        "no folder": {"model": str(unknown / "nowhere")},
        "architecture": {"model": str(unknown)},
        "context": {"model": model, "max_model_len": 10 * POSITIONS},
        "rank": {"model": model, "max_lora_rank": 1000},
        "stages": {"model": model, "pipeline_parallel_size": 2},
        "memory": {"model": model, "kv_cache_memory": 1e-5},
        "cache": {"model": model, "kv_cache_dtype": "int8_per_token_head"},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engines.vllm.without_server", model, json.dumps(wrong)],
        env=os.environ | environment(VllmConfig(**TINY, model=model)) | FORKS,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with vLLM's processes, where it hangs
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no folder", "nowhere"),
        ("architecture", "NobodyForCausalLM"),
        ("context", "max_model_len"),
        ("cache", "reads no int8_per_token_head: choose auto or fp8"),
        ("rank", "512"),
        ("stages", "tensor_parallel_size"),
        ("memory", "memory for the cache"),
        ("no head", "no head named 'score'"),
        ("packed in float32", "in bfloat16"),
        ("quantised already", "is quantised already (fp8): leave it out"),
    ],
)
def test_a_model_that_cannot_be_run_as_asked_is_refused_with_the_reason(
    seen: dict[str, Any], what: str, words: str
) -> None:
    kind, message = seen["refusals"][what]
    assert kind == "UnsupportedModel"
    assert words in message and "Traceback" not in message and "\n" not in message


def test_an_engine_without_adapters_that_sleeps_and_wakes(seen: dict[str, Any]) -> None:
    assert {what for what, was in seen["sleep"].items() if not was} == set()


def test_a_step_takes_as_many_tokens_as_in_vllms_own_server(seen: dict[str, Any]) -> None:
    tokens = seen["tokens of a step"]
    assert tokens["ours"] == tokens["vllm serve"] > tokens["elsewhere"]


def test_it_tells_that_adapters_of_experts_are_not_served(seen: dict[str, Any]) -> None:
    assert "model.layers.1.mlp.experts.w2" in seen["experts"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_steps_that_were_fetched_at_once_have_the_logprobs_of_each(seen: dict[str, Any], count: int) -> None:
    at_once, one_by_one = seen["joined"][str(count)]
    assert at_once == one_by_one
    assert one_by_one.count("TokenLogprob(") == 3
