"""How an engine batches, caches and holds adapters.

An addition to the reference's parameters: it has no words for these.
"""

from typing import Annotated, Literal

from pydantic import Field

from engines.params.about import DEPLOY, EVAL, EVERY_ENGINE, About
from engines.params.base import Params

KVCacheDType = Literal["auto", "int8_per_token_head", "fp8_per_token_head", "fp8", "fp8_e4m3", "fp8_e5m2"]

OF_PT = ("auto", "int8_per_token_head", "fp8_per_token_head")


def unfit_cache_for_pt(kv_cache_dtype: str) -> str | None:
    """Why pt refuses to keep keys and values in it; None: it does not."""
    if kv_cache_dtype in OF_PT:
        return None
    return f"pt keeps 8 bits with a scale for each token and head, which {kv_cache_dtype} has not: choose " + (
        " or ".join(OF_PT[1:])
    )


class EngineParams(Params):
    """How an engine batches, caches and holds adapters. Which engine reads which parameter says the list above."""

    max_num_batched_tokens: Annotated[int | None, About(engines=EVERY_ENGINE)] = Field(None, ge=1)
    """The most tokens that one step computes, prompts and outputs of all requests together: more is faster for prompts,
    fewer keeps running outputs smoother. Fitted to the device unless given."""
    max_itl_slowdown: Annotated[float, About(engines=("pt",))] = Field(2.0, gt=1)
    """How many times the inter-token latency (ITL) of running outputs may be while a prompt of more than
    `max_num_batched_tokens` is computed beside them: a step takes as many of its tokens as it has time for, by what
    earlier steps have taken. Less is smoother, more has long prompts answered sooner. Where nothing runs they take
    whole steps."""
    block_size: Annotated[int | None, About(engines=EVERY_ENGINE)] = Field(None, ge=1)
    """Tokens of one block of the KV cache: small blocks share more of common prompts, large ones cost less to look up.
    Fitted to the device unless given."""
    kv_cache_memory: Annotated[float | None, About(engines=("pt", "vllm"))] = Field(None, gt=0)
    """GiB of KV cache. Unless given: on a GPU what `gpu_memory_utilization` leaves beside the weights; on a CPU as much
    as the weights take, 0.5 to 4 GiB, and at most a quarter of the memory that is free, in the container too. Never
    more than `max_num_seqs` sequences of full length can fill."""
    kv_cache_dtype: Annotated[KVCacheDType, About(engines=("pt", "vllm"))] = "auto"
    """What keys and values are kept in, by vLLM's names; `auto`: the model's own type. 8 bits hold about twice as many
    tokens in the same memory, at a cost in quality. pt has `int8_per_token_head` and `fp8_per_token_head`, with a scale
    for each token and head; vLLM has these on GPUs, and `fp8` (which is `fp8_e4m3`) and `fp8_e5m2` on CPUs too. For
    LMDeploy see `quant_policy`."""
    enable_prefix_caching: Annotated[bool, About(engines=EVERY_ENGINE)] = True
    """Keep the KV cache of prompts that were computed, and use it for later prompts that begin alike."""
    enable_sleep_mode: Annotated[bool, About(engines=("vllm",))] = False
    """Take memory in such a way that `/sleep` can give it back, and `/wake_up` take it again. For vLLM on a GPU."""
    max_num_queued_reqs: Annotated[int, About(DEPLOY)] = Field(256, ge=0)
    """Requests that may wait for their first step. Further ones are turned away with status 429 until some have
    started, except those of a key that has less than its share of the places."""
    engine_start_timeout: Annotated[float, About(DEPLOY + EVAL)] = Field(1800, gt=0)
    """Seconds that the engine has to load the model, a download included. One that takes longer is killed: at the
    server's start that ends the server, later the engine is started again."""
    engine_watchdog_timeout: Annotated[float, About(DEPLOY + EVAL)] = Field(300, ge=5)
    """Seconds after which an engine that has work and makes no step, or does not answer at all, is killed and started
    again. It must be longer than the longest step, and than it takes to load an adapter or to go to sleep."""
    engine_max_restarts: Annotated[int, About(DEPLOY + EVAL)] = Field(10, ge=0)
    """Restarts of the engine in a row, without one that lasted for a minute, after which the server ends with status
    1."""
    threads: Annotated[int | None, About(engines=("pt", "vllm"))] = Field(None, ge=1)
    """CPU threads of the engine. Unless given, one for each physical core that the process may use, by its affinity and
    its container's quota of CPU time."""
    max_loras: Annotated[int, About(engines=EVERY_ENGINE)] = Field(8, ge=0)
    """Different adapters that one step computes with. More may be loaded: they take turns. 0: none can be loaded, which
    makes vLLM faster on a CPU."""
    max_cpu_loras: Annotated[int | None, About(engines=("pt",))] = Field(None, ge=1)
    """Adapters kept in host memory, ready to be copied to where they are computed with; further ones are read from disk
    when they are asked for. Four times `max_loras` unless given."""
    max_lora_rank: Annotated[int, About(engines=EVERY_ENGINE)] = Field(64, ge=1)
    """The highest rank of an adapter that can be loaded."""
    lmdeploy_backend: Annotated[Literal["pytorch", "turbomind"], About(engines=("lmdeploy",))] = "pytorch"
    """LMDeploy's engine: `pytorch`, which serves adapters, or `turbomind`, which serves the base model only."""
