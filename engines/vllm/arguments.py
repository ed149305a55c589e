"""From our configuration to vLLM's arguments."""

import json
import logging
import random
from typing import Any, get_args

import torch
from vllm.config import VllmConfig as Settings
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from engines.adapters.plain import leaves
from engines.checkpoint.loading import choose_dtype
from engines.checkpoint.quantization import check_not_quantized, quantized_by
from engines.checkpoint.quantize import torchao_settings
from engines.checkpoint.structure import Structure
from engines.errors import UnsupportedModel
from engines.process.resources import GIB, kv_cache_bytes
from engines.vllm.config import VllmConfig

log = logging.getLogger(__name__)

BY_KERNELS = ("gptq", "awq", "fp8", "compressed-tensors")
"""Methods of quantised checkpoints with whose weights vLLM's kernels compute, which on CPUs mostly lack float32."""


def engine_settings(config: VllmConfig, structure: Structure, **more: Any) -> Settings:
    """`more`: arguments of vLLM beside those that our settings make.

    Raises UnsupportedModel for what vLLM takes, but cannot do, and vLLM's own errors for the rest.
    """
    on_cpu = current_platform.is_cpu()
    if config.pipeline_parallel_size > 1 and on_cpu:  # its workers die of the first request
        message = "vLLM does not divide a model into stages on CPUs: set tensor_parallel_size instead"
        raise UnsupportedModel(message, param="pipeline_parallel_size")
    if on_cpu:
        _refuse_other_caches(config.kv_cache_dtype)
    if config.enable_sleep_mode and on_cpu:
        log.warning("enable_sleep_mode: on a CPU an engine that sleeps keeps its memory")
    given: dict[str, Any] = {
        "max_model_len": config.max_model_len,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "block_size": config.block_size,
        "kv_cache_memory_bytes": _kv_cache_bytes(config, structure) if on_cpu else _bytes(config.kv_cache_memory),
        "hf_token": config.token,
        "revision": config.revision,
    }
    arguments = AsyncEngineArgs(
        model=config.model,
        dtype=_dtype(config, structure) if on_cpu else config.dtype or "auto",
        max_num_seqs=config.max_num_seqs,
        kv_cache_dtype=config.kv_cache_dtype,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_prefix_caching=config.enable_prefix_caching,
        tensor_parallel_size=config.tensor_parallel_size,
        pipeline_parallel_size=config.pipeline_parallel_size,
        disable_custom_all_reduce=config.disable_custom_all_reduce,
        enforce_eager=config.enforce_eager,
        enable_sleep_mode=config.enable_sleep_mode and not on_cpu,
        seed=random.getrandbits(31) if config.seed is None else config.seed,
        max_logprobs=config.max_logprobs,
        scheduling_policy="priority",
        speculative_config=config.speculative_config,
        structured_outputs_config={"backend": "guidance"},
        # Sampling defaults of the checkpoint are the server's affair: here they would change what was asked for.
        generation_config="vllm",
        disable_log_stats=True,  # of its own loggers: ours gets the numbers all the same
        use_tqdm_on_load=False,
        worker_extension_cls="engines.vllm.worker.WorkerExtension",
        **_quantization(config, structure),
        **{name: value for name, value in given.items() if value is not None},
        **more,
    )
    # As `vllm serve` does: how many tokens a step takes unless told depends on who asks, and on a large GPU by far.
    return arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)


def _refuse_other_caches(kv_cache_dtype: str) -> None:
    """On a CPU. vLLM itself takes any, and answers with something else."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    known = CPUAttentionBackend.supported_kv_cache_dtypes
    if kv_cache_dtype not in known:
        message = f"on CPUs, vLLM's attention reads no {kv_cache_dtype}: choose {' or '.join(known)}"
        raise UnsupportedModel(message, param="kv_cache_dtype")


def lora_arguments(config: VllmConfig, structure: Structure) -> dict[str, Any]:
    """What has vLLM take adapters. Raises UnsupportedModel for a rank that it does not know."""
    # On a CPU vLLM computes rows of the base with the last slot: one that stays empty keeps them right.
    slots = config.max_loras + current_platform.is_cpu()
    rank = next((rank for rank in sorted(get_args(MaxLoRARanks)) if rank >= config.max_lora_rank), None)
    if rank is None:
        message = f"vLLM serves adapters of rank {max(get_args(MaxLoRARanks))} at most, not {config.max_lora_rank}"
        raise UnsupportedModel(message, param="vllm_max_lora_rank")
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,
        "max_lora_rank": rank,
        # Not the head: with adapters on it vLLM dies on a CPU of the first request for the prompt's logprobs.
        "lora_target_modules": leaves(structure.linears),
    }


def _quantization(config: VllmConfig, structure: Structure) -> dict[str, Any]:
    """What has vLLM quantise linear layers as pt does, but for a head that classifies."""
    if config.torchao_bits is None:
        return {}
    from torchao.core.config import config_to_dict
    from torchao.quantization import FqnToConfig

    check_not_quantized(config.model, structure.config)
    # After loading, each process quantises its share of a layer.
    widths = [inputs // config.tensor_parallel_size for inputs, _ in structure.linears.values()]
    settings = FqnToConfig({r"re:(?!(.*\.)?score$).*": torchao_settings(config.torchao_bits, widths)})
    overrides = {"quantization_config_dict_json": json.dumps(config_to_dict(settings))}
    return {"quantization": "torchao", "hf_overrides": overrides}


def _dtype(config: VllmConfig, structure: Structure) -> str:
    """On a CPU. Raises UnsupportedModel."""
    if quantized_by(structure.config) in BY_KERNELS:
        form = structure.config.quantization_config.get("format")
        if config.dtype == "float32" and form == "pack-quantized":  # vLLM would die of the first request
            message = "on CPUs, vLLM computes with packed weights of compressed-tensors in bfloat16: leave it out"
            raise UnsupportedModel(message, param="torch_dtype")
        return config.dtype or "bfloat16"
    return str(choose_dtype(config.dtype, structure.config, "cpu")).removeprefix("torch.")


def _kv_cache_bytes(config: VllmConfig, structure: Structure) -> int:
    """On a CPU, where vLLM would take `gpu_memory_utilization` of the machine's memory."""
    itemsize = int(getattr(torch, _dtype(config, structure)).itemsize)
    return kv_cache_bytes(config.kv_cache_memory, weights=structure.num_parameters * itemsize)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)
