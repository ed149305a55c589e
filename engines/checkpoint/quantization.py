"""How a model's weights are quantised while it is loaded, said in few words. What does it is in `quantize.py`."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from engines.checkpoint.gguf.named import is_gguf
from engines.errors import UnsupportedModel
from engines.params.quantization import QuantizationParams, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    method: Literal["bnb", "hqq", "torchao"]
    bits: int
    """Bits for each weight of a linear layer. The output head and embeddings stay as they are."""
    axis: int = 1
    """hqq: the axis along which weights share a scale."""
    compute_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """bnb with 4 bits: None means the type of the model."""
    quant_type: Literal["fp4", "nf4"] = "nf4"
    """bnb with 4 bits."""
    double_quant: bool = True
    """bnb with 4 bits: quantise the scales too."""
    storage: Storage | None = None
    """bnb with 4 bits: None means uint8."""


@dataclass(frozen=True, slots=True)
class _Method:
    bits: tuple[int, ...]
    package: str
    extra: str
    """What of tuneserve installs the package."""


_METHODS = {
    "bnb": _Method((4, 8), "bitsandbytes", "train"),
    "hqq": _Method((2, 3, 4, 8), "hqq", "hqq"),
    "torchao": _Method((4, 8), "torchao", "train"),
}
UNPACKED = ("gptq", "awq", "hqq")
"""Methods of checkpoints that we unpack ourselves, while transformers reads them."""
BY_TRANSFORMERS = ("compressed-tensors", "fp8")
"""Those that transformers unpacks, where it is told to."""
COMPRESSED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
"""Formats of compressed-tensors that are unpacked."""
_OF_BNB = (
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage",
)
_EETQ = "there is no package of EETQ for this Python, and no kernel of it for a CPU: choose bnb with quant_bits 8"


def quantization_of(params: QuantizationParams) -> Quantization | None:
    """What `params` ask for, which have no conflicts; None: the weights are loaded as they are."""
    if params.quant_method is None or params.quant_method == "eetq" or params.quant_bits is None:
        return None
    return Quantization(
        method=params.quant_method,
        bits=params.quant_bits,
        axis=1 if params.hqq_axis is None else params.hqq_axis,
        compute_dtype=params.bnb_4bit_compute_dtype,
        quant_type=params.bnb_4bit_quant_type,
        double_quant=params.bnb_4bit_use_double_quant,
        storage=params.bnb_4bit_quant_storage,
    )


def quantization_conflicts(params: QuantizationParams, *, mark: str = "") -> list[tuple[str, str]]:
    """Each parameter of quantisation that cannot be honoured, or that nothing would read beside the others, and why.
    `mark` stands before the names of parameters in the reasons."""
    return [*_unfit_method(params, mark), *_unread(params, mark)]


def quantized_by(config: Any) -> str | None:
    """The method by which a checkpoint with this configuration (a `PreTrainedConfig`) was saved quantised."""
    said = getattr(config, "quantization_config", None)
    if not said:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else said.quant_method
    return str(getattr(method, "value", method))


def stays_quantized(config: Any) -> str | None:
    """The method by which the weights of a checkpoint are quantised in memory, too; None: they are plain there."""
    return None if is_unpacked(config) else quantized_by(config)


def is_unpacked(config: Any) -> bool:
    """Whether the weights of a quantised checkpoint are plain once they are loaded, and nothing else is quantised."""
    method = quantized_by(config)
    if method == "compressed-tensors":
        return _told(config).get("format") in COMPRESSED
    return method in UNPACKED or method == "fp8"


def rounds_inputs(config: Any) -> bool:
    """Whether layers of a quantised checkpoint are meant to round what they get, too."""
    told = _told(config)
    groups = told.get("config_groups") or {}
    return quantized_by(config) == "fp8" or any(group.get("input_activations") for group in groups.values())


def _told(config: Any) -> dict[str, Any]:
    told = config.quantization_config
    return told if isinstance(told, dict) else {}


def check_not_quantized(model: str, config: Any) -> None:
    """Raises UnsupportedModel where a checkpoint that is to be quantised was saved quantised."""
    if method := quantized_by(config):
        message = f"{Path(model).name!r} is quantised already ({method}): leave it out"
        raise UnsupportedModel(message, param="quant_method")
    if is_gguf(model):
        message = f"{Path(model).name!r} is a GGUF file, and keeps its own types: leave it out"
        raise UnsupportedModel(message, param="quant_method")


def install_command(method: str) -> str:
    return f"pip install 'tuneserve[{_METHODS[method].extra}]'"


def _unfit_method(params: QuantizationParams, mark: str) -> Iterator[tuple[str, str]]:
    method = params.quant_method
    if method == "eetq":
        yield "quant_method", _EETQ
    if method is None or method == "eetq":
        return
    known = _METHODS[method]
    if params.quant_bits is None:
        yield "quant_method", f"say how many bits each weight is to have: {mark}quant_bits {any_of(known.bits)}"
    elif params.quant_bits not in known.bits:
        yield "quant_bits", f"{method} has {any_of(known.bits)}, not {params.quant_bits}"
    if find_spec(known.package) is None:
        yield "quant_method", f"the package {known.package} is not installed here: {install_command(method)}"


def _unread(params: QuantizationParams, mark: str) -> Iterator[tuple[str, str]]:
    method, given = params.quant_method, params.model_fields_set
    if method is None and params.quant_bits is not None:
        yield "quant_bits", f"nothing quantises the model: give {mark}quant_method too"
    if method != "hqq" and params.hqq_axis is not None:
        yield "hqq_axis", f"only {mark}quant_method hqq reads it"
    if (method, params.quant_bits) == ("bnb", 4):
        return
    for name in _OF_BNB:
        if name in given and getattr(params, name) != type(params).model_fields[name].default:
            yield name, f"only {mark}quant_method bnb with {mark}quant_bits 4 reads it"


def any_of(bits: tuple[int, ...]) -> str:
    *others, last = map(str, bits)
    return f"{', '.join(others)} or {last}" if others else last
