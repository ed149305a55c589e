"""Quantising weights while they are loaded."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import EXPORT, MERGE, THE_MODEL, TRAINING, About
from engines.params.base import Params
from engines.params.model import DType

Storage = Literal["uint8", "float16", "bfloat16", "float32"]
NO_READER = "LMDeploy 0.18 serves checkpoints that are quantised already, and quantises none while it loads: pt does"
CHOSEN = About(
    TRAINING + MERGE,
    engines=("pt", "vllm"),
    not_in_lmdeploy=NO_READER,
    not_in_fine_tuning=THE_MODEL,
    as_served=True,
)
LOADED = About(TRAINING + MERGE, engines=("pt",), not_in_fine_tuning=THE_MODEL, as_served=True)
COMPUTED = About(TRAINING + EXPORT, engines=("pt",), not_in_fine_tuning=THE_MODEL, as_served=True)
"""Of weights that are merged and written unquantised nothing depends on these."""


class QuantizationParams(Params):
    """Quantising weights while they are loaded."""

    starred: ClassVar = frozenset({"quant_method", "quant_bits"})

    quant_method: Annotated[Literal["bnb", "hqq", "eetq", "torchao"] | None, CHOSEN] = None
    """Library that quantises the linear layers, but for the output head, while they are loaded: bitsandbytes (`bnb`),
    HQQ (`pip install 'tuneserve[hqq]'`) or torchao, which the reference does not have. Not quantised unless given. EETQ
    has no package for this Python; the engine vllm has torchao only. (A checkpoint that is quantised already needs no
    parameter.)"""
    quant_bits: Annotated[int | None, CHOSEN] = Field(None, ge=1, le=8)
    """Bits for each weight: 4 or 8 by bnb and torchao, which keeps 4 of them in a byte; 2, 3, 4 or 8 by hqq."""
    hqq_axis: Annotated[int | None, LOADED] = Field(None, ge=0, le=1)
    """Along which axis HQQ groups weights that share a scale. 1 unless given."""
    bnb_4bit_compute_dtype: Annotated[DType | None, COMPUTED] = None
    """In which type bitsandbytes computes with 4-bit weights. That of `torch_dtype` unless given."""
    bnb_4bit_quant_type: Annotated[Literal["fp4", "nf4"], LOADED] = "nf4"
    """The sixteen values of a 4-bit weight: a small floating-point number (`fp4`), or levels spaced as normally
    distributed weights are (`nf4`)."""
    bnb_4bit_use_double_quant: Annotated[bool, LOADED] = True
    """Quantise the scales of 4-bit weights too."""
    bnb_4bit_quant_storage: Annotated[Storage | None, COMPUTED] = None
    """In which type packed 4-bit weights are kept, which matters for sharding them: nothing else depends on it. `uint8`
    unless given."""
