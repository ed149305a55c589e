"""A text as vLLM classifies it, by a checkpoint that has a head for this."""

import math
from typing import Any

from vllm.config import PoolerConfig
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from engines.adapters.folder import MAX_LABELS
from engines.checkpoint.heads import head_of, is_classifier
from engines.checkpoint.loading import load_model
from engines.errors import EngineFailure, InvalidRequest
from engines.types import Head, PoolingRequest
from engines.vllm.config import VllmConfig


def find_head(config: VllmConfig, hf_config: Any) -> Head | None:
    """The head of a checkpoint for sequence classification, None of any other. Reads no weights.

    Raises UnsupportedModel where the checkpoint says that it has one and has none: vLLM would make a random one.
    """
    if not is_classifier(hf_config):
        return None
    load_model(
        config.model,
        config=hf_config,
        dtype="auto",
        device_map="meta",
        task_type="seq_cls",
        own_head=True,
        revision=config.revision,
        token=config.token,
    )
    return head_of(hf_config)


def arguments() -> dict[str, Any]:
    """What has vLLM judge by the last token, as transformers does, whatever else it finds beside the checkpoint, and
    take heads of adapters."""
    return {
        "runner": "pooling",
        "pooler_config": PoolerConfig(seq_pooling_type="LAST"),
        "max_lora_cls_labels": MAX_LABELS,
    }


async def classify(llm: AsyncLLM, request: PoolingRequest, lora: LoRARequest | None) -> list[float]:
    """Return the logits of the head after the last token, one for each label: the adapter's own, where it brings one.
    Cancelled, it ends in vLLM, too."""
    try:
        outputs = llm.encode(
            tokens_input(request.prompt_ids, cache_salt=request.cache_salt),
            PoolingParams(task="classify", use_activation=False),
            request.request_id,
            lora_request=lora,
            priority=request.priority,
        )
        [logits] = [made.outputs.data.tolist() async for made in outputs]
    except VLLMClientError as error:
        raise InvalidRequest(str(error.args[0]), param=getattr(error, "parameter", None)) from error
    except EngineDeadError as error:
        raise EngineFailure("vLLM's processes ended while they ran this request") from error
    if not all(map(math.isfinite, logits)):
        raise EngineFailure("the model's numbers for this prompt are not finite")
    return list(logits)
