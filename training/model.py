"""The model that is trained, and its tokenizer, as transformers loads them."""

from pathlib import Path
from typing import Any, TypeVar

from engines.adapters.source import fetch_adapter, name_adapters
from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from engines.errors import InvalidRequest, UnsupportedModel
from engines.text.prompt import read_chat_template
from engines.text.templates import chosen_template, template_in
from training.device import training_dtype
from training.methods import method_of
from training.params.sft import SftParams

P = TypeVar("P", bound=SftParams)


def load_for_training(params: SftParams) -> Any:
    """The base model (a `PreTrainedModel`) on the CPU, in the dtype to train in. Raises UnsupportedModel."""
    source = model_of(params)
    where: dict[str, Any] = {"revision": params.model_revision, "token": params.hub_token}
    config = load_config(source, **where)
    dtype = training_dtype(params, config)
    attention = {"flash_attn": "flash_attention_2"}.get(params.attn_impl or "", params.attn_impl)
    model = load_model(source, config=config, dtype=dtype, device_map="cpu", attn_implementation=attention, **where)
    if params.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UnsupportedModel(f"{type(model).__name__} cannot do it: turn it off", param="gradient_checkpointing")
    return model


def with_template(params: P) -> P:
    """`params` with the chat template itself, where they name its file: that is not there wherever the checkpoints go.

    Raises InvalidRequest.
    """
    if params.chat_template is None:
        return params
    return params.model_copy(update={"chat_template": read_chat_template(params.chat_template)})


def load_tokenizer_for(params: SftParams) -> Any:
    """The tokenizer, with a token to pad with and the chat template that is trained, which goes with the checkpoints.

    Raises InvalidRequest, UnsupportedModel.
    """
    source = model_of(params)
    tokenizer = load_tokenizer(source, revision=params.model_revision, token=params.hub_token)
    for adapter in name_adapters(params.adapters).values():
        tokenizer.chat_template = template_in(fetch_adapter(adapter, token=params.hub_token)) or tokenizer.chat_template
    if params.use_chat_template or method_of(params).rows != "text":  # a text says nothing of how messages are written
        tokenizer.chat_template = chosen_template(params, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_of(params: SftParams) -> str:
    """What the weights are loaded from. Raises InvalidRequest.

    To go on from a checkpoint, the trainer puts its weights into the model that training began with. The
    checkpoint's own config.json would not do: the token to pad with, which the trainer writes there, has its
    embedding left untrained.
    """
    if not params.model:
        raise InvalidRequest("name the model to train, a folder or an id on the hub", param="model")
    local = Path(params.model).expanduser()
    return str(local) if local.is_dir() else params.model
