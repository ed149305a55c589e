"""Settings of the vLLM engine. The other engines read some of them too."""

from typing import Annotated, ClassVar

from pydantic import Field

from engines.params.about import DEPLOY, EVERY_ENGINE, FOR_IMAGES, About
from engines.params.base import Params


class VllmParams(Params):
    """Settings of the vLLM engine. `max_num_seqs` and `max_model_len` are read by every engine,
    `gpu_memory_utilization` by pt, `enforce_eager` by LMDeploy."""

    starred: ClassVar = frozenset(
        {"gpu_memory_utilization", "tensor_parallel_size", "max_model_len", "limit_mm_per_prompt"}
    )

    gpu_memory_utilization: Annotated[float, About(engines=("pt", "vllm"))] = Field(0.9, gt=0, le=1)
    """The part of a GPU's memory that the engine may fill with weights, activations and KV cache together."""
    tensor_parallel_size: Annotated[int, About(engines=("vllm",))] = Field(1, ge=1)
    """Over how many GPUs each layer is divided."""
    pipeline_parallel_size: Annotated[int, About(engines=("vllm",))] = Field(1, ge=1)
    """Over how many stages, each on its own GPUs, the layers are divided."""
    max_num_seqs: Annotated[int, About(DEPLOY, engines=EVERY_ENGINE)] = Field(256, ge=1)
    """The most sequences that one step works on."""
    max_model_len: Annotated[int | None, About(engines=EVERY_ENGINE)] = Field(None, ge=1)
    """The most tokens of a prompt and its output together. The model's limit unless given."""
    disable_custom_all_reduce: Annotated[bool, About(engines=("vllm",))] = False
    """Let NCCL sum up over the GPUs instead of vLLM's own kernel."""
    enforce_eager: Annotated[bool, About(engines=("vllm", "lmdeploy"))] = False
    """Run without CUDA graphs: less memory and a faster start, slower steps."""
    limit_mm_per_prompt: Annotated[dict[str, int] | None, About(not_in_deploy=FOR_IMAGES)] = None
    """The most images, videos or audio clips of one prompt: `{"image": 10, "video": 5}`. vLLM's own limit unless
    given. Images are not supported in this version, so neither is this."""
    vllm_max_lora_rank: Annotated[int, About(engines=("vllm",), same_as="max_lora_rank")] = Field(16, ge=1)
    """The highest rank of an adapter that vLLM can load; `max_lora_rank` means the same."""
