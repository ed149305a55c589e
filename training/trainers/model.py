"""The model that is trained, and its tokenizer, as transformers loads them."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engines.adapters.source import fetch_adapter, name_adapters
from engines.checkpoint.gguf.named import is_gguf
from engines.checkpoint.heads import is_classifier
from engines.checkpoint.loading import attention_of, load_config, load_model, load_tokenizer
from engines.checkpoint.quantization import quantization_of, quantized_by, stays_quantized
from engines.errors import InvalidRequest, UnsupportedModel
from engines.text.templates import chosen_template, read_chat_template, template_in
from training.data.encode import stop_token_ids
from training.data.samples import Learns
from training.device import device_name
from training.params.head import unfit
from training.params.sft import SftParams
from training.processes import Processes
from training.sharding.zero import stage

if TYPE_CHECKING:
    import torch

P = TypeVar("P", bound=SftParams)


BOUNDED = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that keep the samples of a packed row apart."""


def load_base_config(params: SftParams) -> Any:
    """The base model's `PreTrainedConfig`. Raises UnsupportedModel, also where training asks what it has not."""
    config = load_config(model_of(params), revision=params.model_revision, token=params.hub_token)
    text_config = config.get_text_config()
    others = sorted(set(getattr(text_config, "layer_types", None) or ()) - BOUNDED)
    if params.packing and (others or _has_state(config)):
        named = f" ({', '.join(others)})" if others else ""
        message = f"layers of {text_config.model_type}{named} would see from one sample into the next: turn it off"
        raise UnsupportedModel(message, param="packing")
    if params.router_aux_loss_coef and not hasattr(text_config, "output_router_logits"):
        message = f"{text_config.model_type} is no mixture of experts: leave it out"
        raise UnsupportedModel(message, param="router_aux_loss_coef")
    attention_of(config, params.attn_impl)
    _stretch(text_config, params)
    return config


def _stretch(text_config: Any, params: SftParams) -> None:
    """Have the model take `max_length` tokens, where `rope_scaling` says so. Raises UnsupportedModel."""
    from engines.pt.layers import rope

    rope.scale(text_config, params.rope_scaling, params.max_length)
    if params.rope_scaling == "linear":  # which goes by its factor; the other kind goes by the positions of before
        assert params.max_length is not None, "refused otherwise"
        text_config.max_position_embeddings = max(text_config.max_position_embeddings, params.max_length)


def check_type(params: SftParams, config: Any) -> None:
    """Raises InvalidRequest where the model is of another family than `model_type` says."""
    if params.model_type not in (None, config.model_type, config.get_text_config().model_type):
        message = f"by its config.json, the model is of type {config.model_type}: say that, or leave it out"
        raise InvalidRequest(message, param="model_type")


def _has_state(config: Any) -> bool:
    """Whether a layer hands something on from token to token, as those of Mamba do."""
    from transformers import AutoModelForCausalLM

    mapping = AutoModelForCausalLM._model_mapping
    return type(config) in mapping and bool(mapping[type(config)]._is_stateful)


def with_head(params: P, config: Any, num_labels: int | None = None) -> P:
    """`params` of a model that gets a head or has one, with what config.json says of it where they leave that open;
    `config` then says what they say. `num_labels`: the method's. Raises InvalidRequest, UnsupportedModel.
    """
    there = config.num_labels if is_classifier(config) else None
    labels = num_labels or params.num_labels or there
    if labels is None:
        raise InvalidRequest("the model has no head yet: say how many labels it is to have", param="num_labels")
    if there not in (None, labels):
        raise UnsupportedModel(f"the model's head has {there}, not {labels}: leave it out", param="num_labels")
    problem = params.problem_type or (there and config.problem_type)
    problem = problem or ("regression" if labels == 1 else "single_label_classification")
    if reason := unfit(labels, problem):
        raise InvalidRequest(reason, param="problem_type")
    if there is None:
        config.num_labels = labels
    config.problem_type = problem
    return params.model_copy(update={"task_type": "seq_cls", "num_labels": labels, "problem_type": problem})


def load_for_training(params: SftParams, config: Any, dtype: "torch.dtype") -> Any:
    """The base model (a `PreTrainedModel`) on the CPU, or where it trains, if it is quantised: packed weights stay
    where they are. Raises UnsupportedModel."""
    from engines.pt.layers import rope

    quantization = quantization_of(params)
    model = load_model(
        model_of(params),
        config=config,
        dtype=dtype,
        device_map=_place(params, config, quantized=quantization is not None),
        task_type=params.task_type,
        attn_implementation={"flash_attn": "flash_attention_2"}.get(params.attn_impl or "", params.attn_impl),
        revision=params.model_revision,
        token=params.hub_token,
        quantization=quantization,
    )
    if params.rope_scaling is not None and params.max_length is not None:
        rope.freeze(model, params.max_length)
    model.config.architectures = [type(model).__name__]
    if params.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UnsupportedModel(f"{type(model).__name__} cannot do it: turn it off", param="gradient_checkpointing")
    return model


def _place(params: SftParams, config: Any, *, quantized: bool) -> str | None:
    """Where the weights are loaded to; None: each process keeps its part of them."""
    divides = stage(params.deepspeed) == 3
    quantized = quantized or stays_quantized(config) is not None
    by = "deepspeed" if divides else "fsdp" if params.fsdp else "tensor_model_parallel_size"
    if (divides and quantized_by(config)) or (quantized and (params.fsdp or params.tensor_model_parallel_size > 1)):
        raise UnsupportedModel("quantised weights are not divided among processes", param=by)
    if quantized:
        return device_name(Processes.of_environment().local_rank)
    return None if divides else "cpu"


def with_template(params: P) -> P:
    """`params` with the chat template itself, where they name its file: that is not there wherever the checkpoints go.

    Raises InvalidRequest.
    """
    if params.chat_template is None:
        return params
    return params.model_copy(update={"chat_template": read_chat_template(params.chat_template)})


def load_tokenizer_for(params: SftParams, *, learns: Learns) -> Any:
    """The tokenizer, with a token to pad with and the chat template that is trained, which goes with the checkpoints.

    Raises InvalidRequest, UnsupportedModel.
    """
    source = model_of(params)
    tokenizer = load_tokenizer(source, revision=params.model_revision, token=params.hub_token)
    for adapter in name_adapters(params.adapters).values():
        tokenizer.chat_template = template_in(fetch_adapter(adapter, token=params.hub_token)) or tokenizer.chat_template
    if params.use_chat_template or learns != "text":  # a text says nothing of how messages are written
        tokenizer.chat_template = chosen_template(params, tokenizer)
    if params.task_type == "seq_cls":
        tokenizer.pad_token_id = _token_that_ends_nothing(tokenizer, stop_token_ids(params, tokenizer))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _token_that_ends_nothing(tokenizer: Any, ends: Collection[int]) -> int:
    """The token to pad with, before a model with a head: transformers has the head judge a text by the last token that
    is another, so that one which ends texts, such as the end of sequence, would be passed over there.

    The tokenizer's own, else one that marks something else, else the one with the highest id, which is the rarest.
    """
    marks = [
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        *reversed(tokenizer.all_special_ids),
        tokenizer.bos_token_id,
    ]
    others = (token for token in (*marks, *reversed(range(len(tokenizer)))) if token is not None and token not in ends)
    found: int = next(others)
    return found


def model_of(params: SftParams) -> str:
    """What the weights are loaded from. Raises InvalidRequest.

    To go on from a checkpoint, the trainer puts its weights into the model that training began with. The
    checkpoint's own config.json would not do: the token to pad with, which the trainer writes there, has its
    embedding left untrained.
    """
    if not params.model:
        raise InvalidRequest("name the model to train, a folder or an id on the hub", param="model")
    local = Path(params.model).expanduser()
    return str(local) if local.is_dir() or is_gguf(params.model) else params.model
