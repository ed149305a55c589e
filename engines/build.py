"""From the parameters of `deploy` to the engine they ask for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engines.engine import Engine
from engines.errors import UnsupportedModel
from engines.pt.config import PtConfig

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


def build_engine(params: "DeployParams") -> Engine:
    """Return the engine, not yet started but on its way: what comes before `start` costs it no time.

    Raises UnsupportedModel for a backend that is not built yet.
    """
    if params.infer_backend != "pt":
        message = f"infer_backend {params.infer_backend} is not built yet: choose pt"
        raise UnsupportedModel(message, param="infer_backend")
    from engines.pt.client import PtEngine

    engine = PtEngine(pt_config(params), max_num_queued_reqs=params.max_num_queued_reqs)
    engine.prepare()
    return engine


def pt_config(params: "DeployParams") -> PtConfig:
    """What the pt engine reads of the parameters."""
    assert params.model is not None, "deploy has checked it"
    return PtConfig(
        model=params.model,
        revision=params.model_revision,
        token=params.hub_token,
        dtype=params.torch_dtype,
        device_map=dict(params.device_map) if isinstance(params.device_map, Mapping) else params.device_map,
        attn_impl=params.attn_impl,
        rope_scaling=params.rope_scaling,
        max_model_len=params.max_model_len or params.max_length,
        max_num_seqs=params.max_batch_size or params.max_num_seqs,
        max_num_batched_tokens=params.max_num_batched_tokens,
        block_size=params.block_size,
        kv_cache_memory=params.kv_cache_memory,
        gpu_memory_utilization=params.gpu_memory_utilization,
        enable_prefix_caching=params.enable_prefix_caching,
        threads=params.threads,
        seed=params.seed if "seed" in params.model_fields_set else None,
        max_logprobs=params.max_logprobs,
        max_loras=params.max_loras,
        max_cpu_loras=params.max_cpu_loras,
        max_lora_rank=params.max_lora_rank,
    )
