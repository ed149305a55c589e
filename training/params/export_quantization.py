"""What each method of quantising an exported model takes. What does it is in `training.exports`."""

from collections.abc import Iterator
from dataclasses import dataclass

from engines.checkpoint.quantization import any_of, quantization_conflicts
from engines.params.quantization import QuantizationParams
from training.params.export import ExportParams
from training.params.refusal import Refusal, given

OF_LIBRARIES = ("bnb", "hqq", "torchao")
"""Methods by which models are quantised while they are loaded, too."""
OF_DATA = ("quant_n_samples", "max_length", "quant_batch_size", "dataset", "data_seed", "strict")


@dataclass(frozen=True, slots=True)
class Method:
    bits: tuple[int, ...]
    """Numbers of bits to choose from; one: it need not be said."""
    calibrated: bool = False
    """Whether it is measured on a data set."""


METHODS = {
    "gptq": Method((2, 4, 8), calibrated=True),
    "awq": Method((4,), calibrated=True),
    "fp8": Method((8,)),
    "w8a8": Method((8,)),
}
"""Those that are computed here."""


def bits_of(params: ExportParams) -> int | None:
    """Bits for each weight; None where the model is not quantised, or nothing fits."""
    if params.quant_method is None or params.quant_bits is not None:
        return params.quant_bits
    method = METHODS.get(params.quant_method)
    return method.bits[0] if method is not None and len(method.bits) == 1 else None


def export_conflicts(params: ExportParams) -> list[Refusal]:
    """Each parameter of quantisation that cannot be honoured, or that nothing would read beside the others, and why."""
    name = params.quant_method
    method = METHODS.get(name or "")
    found = [(each, "only gptq and awq read it") for each in _unread(params, method)]
    if name is None or name in OF_LIBRARIES:
        asked = params.model_dump(include=params.model_fields_set & QuantizationParams.model_fields.keys())
        return [*found, *quantization_conflicts(QuantizationParams.model_validate(asked))]
    assert method is not None, "every method is of a library or of ours"
    return [*found, *_unfit_bits(params, method), *_of_libraries(params)]


def _unread(params: ExportParams, method: Method | None) -> Iterator[str]:
    if method is None or not method.calibrated:
        yield from given(params, (*OF_DATA, "group_size"))


def _unfit_bits(params: ExportParams, method: Method) -> Iterator[Refusal]:
    if bits_of(params) is None:
        yield "quant_method", f"say how many bits each weight is to have: quant_bits {any_of(method.bits)}"
    elif bits_of(params) not in method.bits:
        yield "quant_bits", f"{params.quant_method} has {any_of(method.bits)}, not {params.quant_bits}"
    if method.calibrated and not params.dataset:
        yield "dataset", f"{params.quant_method} measures on texts which weights matter: name some"


def _of_libraries(params: ExportParams) -> Iterator[Refusal]:
    names = set(QuantizationParams.model_fields) - {"quant_method", "quant_bits"}
    for each in given(params, sorted(names)):
        reader = "quant_method hqq" if each == "hqq_axis" else "quant_method bnb with quant_bits 4"
        yield each, f"only {reader} reads it"
