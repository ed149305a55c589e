"""Find a model, and load its tokenizer, configuration and weights through transformers, and none of its code."""

import copy
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engines.checkpoint.gguf.file import open_gguf
from engines.checkpoint.gguf.named import is_gguf
from engines.checkpoint.hub import reason_of
from engines.checkpoint.quantization import (
    BY_TRANSFORMERS,
    UNPACKED,
    Quantization,
    check_not_quantized,
    is_unpacked,
    quantized_by,
    rounds_inputs,
)
from engines.checkpoint.quantize import (
    forget_packing,
    forget_quantizing,
    keep_unpacked,
    let_go_of_file,
    transformers_settings,
    unpack,
)
from engines.errors import UnsupportedModel
from engines.params.model import TaskType

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def load_tokenizer(model: str, *, revision: str | None = None, token: str | None = None) -> Any:
    """Return the tokenizer (a `PreTrainedTokenizerBase`) of a folder, hub id or GGUF file. Raises UnsupportedModel."""
    from transformers import AutoTokenizer

    if is_gguf(model):
        from engines.checkpoint.gguf.tokenizer import tokenizer_of

        return tokenizer_of(open_gguf(model))
    with _loading("tokenizer", model):
        return AutoTokenizer.from_pretrained(model, revision=revision, token=token, trust_remote_code=False)


def load_config(model: str, *, revision: str | None = None, token: str | None = None) -> Any:
    """Return the `PreTrainedConfig` of a folder, hub id or GGUF file. Raises UnsupportedModel."""
    from transformers import AutoConfig

    if is_gguf(model):
        from engines.checkpoint.gguf.config import config_of

        return config_of(open_gguf(model))
    with _loading("configuration", model):
        return AutoConfig.from_pretrained(model, revision=revision, token=token, trust_remote_code=False)


def load_generation_config(model: str, *, revision: str | None = None, token: str | None = None) -> Any:
    """Return the model's own sampling defaults (a `GenerationConfig`), made from its config where it has no file."""
    from transformers import GenerationConfig

    if is_gguf(model):
        from engines.checkpoint.gguf.config import generation_config_of

        return generation_config_of(open_gguf(model))
    try:
        return GenerationConfig.from_pretrained(model, revision=revision, token=token)
    except OSError:
        return GenerationConfig.from_model_config(load_config(model, revision=revision, token=token))


def load_eos_token_ids(model: str, *, revision: str | None = None, token: str | None = None) -> tuple[int, ...]:
    """The tokens that end a text of the model, as it says itself: none, one or several."""
    eos = load_generation_config(model, revision=revision, token=token).eos_token_id
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


def load_model(
    model: str,
    *,
    config: Any,
    dtype: "torch.dtype | Literal['auto']",
    device_map: str | dict[str, Any] | None,
    task_type: TaskType = "causal_lm",
    own_head: bool = False,
    attn_implementation: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    quantization: Quantization | None = None,
    keep_integers: bool = False,
) -> Any:
    """Return the model (a `PreTrainedModel`), ready for inference: by `task_type`, one that continues text, or one that
    classifies it, with a new head of `config.num_labels` outputs where the checkpoint has none, computed in float32.

    `own_head`: the head has to be the checkpoint's, the module `score`. `quantization`: how the weights of linear
    layers are to be kept; None: as they are. `keep_integers`: linear layers that are unpacked get what they were packed
    from beside their weights, and those of a GGUF file in their place (`integers_of`). Raises UnsupportedModel.
    """
    import transformers

    attn_implementation = attention_of(config, attn_implementation)
    if quantization is not None:
        check_not_quantized(model, config)
    auto = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "seq_cls": transformers.AutoModelForSequenceClassification,
    }[task_type]
    packed = quantized_by(config) if is_unpacked(config) else None
    if packed in BY_TRANSFORMERS and device_map == "meta":  # which unpacks numbers only
        packed = None
    with _loading("weights", model, packed):
        if is_gguf(model):
            from engines.checkpoint.gguf.model import load

            found, info = load(
                open_gguf(model),
                auto,
                config=config,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                keep_integers=keep_integers,
            )
        else:
            found, info = auto.from_pretrained(
                model,
                config=_unpacked(config, keep_integers) if packed else config,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                revision=revision,
                token=token,
                trust_remote_code=False,
                output_loading_info=True,
                **({} if quantization is None else transformers_settings(quantization, dtype, auto, config)),
            )
        if quantization is not None:
            forget_quantizing(found, quantization)
            let_go_of_file(found)
    if packed:
        if packed in UNPACKED:
            _check_unpacked(model, packed, info)
        if packed == "fp8":
            _check_scales(model, info)
        forget_packing(found, keep_integers=keep_integers)
        if device_map != "meta":
            _tell_unpacked(model, packed, found, rounds_inputs(config))
    if quantized_by(found.config) and device_map != "meta":
        keep_unpacked(found)
        unpack(found)
    if own_head and (not hasattr(found, "score") or any(key.startswith("score.") for key in info["missing_keys"])):
        message = f"the checkpoint {model!r} has no head named 'score', with which it could classify"
        raise UnsupportedModel(message, param="task_type")
    if task_type == "seq_cls":
        from engines.checkpoint.exact_head import make_exact

        make_exact(found)
    return found.eval()


def attention_of(config: Any, asked: str | None) -> str | None:
    """The attention that computes what `config` (a `PreTrainedConfig`) says, by transformers' names; None: the one that
    transformers takes. Its `sdpa` leaves out the cap of Gemma 2's scores, and is what it would take.

    Raises UnsupportedModel."""
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None:
        return asked
    if asked == "sdpa":
        message = f"the scores of {config.model_type} are capped, which sdpa does not do: choose eager or flash_attn"
        raise UnsupportedModel(message, param="attn_impl")
    return asked or "eager"


def choose_dtype(asked: str | None, config: Any, device: str) -> "torch.dtype":
    """Return the dtype to compute in: the one asked for, else the checkpoint's.

    A CPU without half-precision instructions computes bfloat16 several times slower than float32, to which every
    bfloat16 and float16 value widens exactly: there float32 is the default.
    """
    import torch

    if asked is not None:
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[asked]
    text_config = config.get_text_config()
    stored: torch.dtype = text_config.dtype or config.dtype or torch.float32
    if device == "cpu" and stored in (torch.float16, torch.bfloat16) and not _cpu_computes(stored):
        log.info("this CPU has no %s instructions: computing in float32", str(stored).removeprefix("torch."))
        return torch.float32
    return stored


def _cpu_computes(dtype: "torch.dtype") -> bool:
    import torch

    if dtype is torch.float16:
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _unpacked(config: Any, keep_integers: bool) -> Any:
    """`config` (a `PreTrainedConfig`), as it has transformers load plain weights, or integers that are to be kept.

    Raises UnsupportedModel."""
    if quantized_by(config) in BY_TRANSFORMERS:
        found = copy.deepcopy(config)
        stays_packed = keep_integers and quantized_by(config) == "compressed-tensors"  # `forget_packing` goes on
        found.quantization_config |= {"dequantize": not stays_packed}
        if "kv_cache_scheme" in found.quantization_config:  # the cache holds keys and values as they are
            found.quantization_config["kv_cache_scheme"] = None
        return found
    from engines.checkpoint.unpacking import unpacked

    return unpacked(config, keep_integers=keep_integers)


def _check_unpacked(model: str, method: str, info: dict[str, Any]) -> None:
    """Raises UnsupportedModel where a packed checkpoint has something for which the model has no place, or not all."""
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("score.")):
        message = f"the weights of model {model!r} cannot be unpacked ({method}): there is no {missing[0]}"
        raise UnsupportedModel(message, param="model")
    if any(key.endswith(".act.weight") for key in info["unexpected_keys"]):  # AWQ's, of models with GELU
        message = f"the activations of model {model!r} are scaled, too ({method}), which its class does not do"
        raise UnsupportedModel(message, param="model")


def _check_scales(model: str, info: dict[str, Any]) -> None:
    """Raises UnsupportedModel where FP8 weights have scales by other names than those that transformers multiplies
    them by: it would leave them out."""
    if others := sorted(key for key in info["unexpected_keys"] if "scale" in key.rpartition(".")[2]):
        message = f"the weights of model {model!r} cannot be unpacked (fp8): {others[0]} has another name than"
        raise UnsupportedModel(f"{message} weight_scale_inv, by which scales are known", param="model")


def _tell_unpacked(model: str, method: str, found: Any, rounded: bool) -> None:
    """`rounded`: whether its layers were meant to round what they get."""
    from engines.checkpoint.size import bytes_of_weights

    if not any(vars(layer).get("integers") for layer in found.modules()):
        kind, size = str(found.dtype).removeprefix("torch."), bytes_of_weights(found) / 2**30
        log.info("%s is packed by %s, and was unpacked to %s: its weights take %.1f GiB", model, method, kind, size)
    if rounded:
        log.info("the inputs of its layers are not rounded, as they would be where it computes in 8 bits")


@contextmanager
def _loading(what: str, model: str, packed: str | None = None) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be had into one sentence for the person who named it.
    `packed`: the method by which its weights are."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        known = "" if Path(model).is_dir() else " (it is not a folder, so it was looked up as a hub id)"
        message = f"the {what} of model {model!r} cannot be loaded{known}: {reason_of(error)}"
        raise UnsupportedModel(message, param="model") from error
    except RuntimeError as error:
        if packed is None or type(error) is not RuntimeError:  # as that of memory that is full
            raise
        message = f"the {what} of model {model!r} cannot be unpacked ({packed}); the log says which: {reason_of(error)}"
        raise UnsupportedModel(message, param="model") from error
