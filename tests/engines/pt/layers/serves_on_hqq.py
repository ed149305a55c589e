"""`python -m tests.engines.pt.layers.serves_on_hqq MODEL ADAPTER`, where HQQ can be imported.

The engine answers on a base model that HQQ quantised, layer by layer as it is read, as transformers and PEFT do.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from hqq.core.quantize import HQQLinear

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization
from tests.engines.pt.layers.test_quantized import check_answers, check_bytes
from tests.plain_weights import plain_layers


def check_reading(model: Path, quantization: Quantization) -> None:
    """The plain weights of the whole model are never there together."""
    plain: list[int] = []
    quantize = HQQLinear.quantize

    def watched(*given: Any, **more: Any) -> None:
        plain.append(plain_layers() - before)
        quantize(*given, **more)

    HQQLinear.quantize = watched
    gc.collect()
    before = plain_layers()
    config = load_config(str(model))
    load_model(str(model), config=config, dtype=torch.float32, device_map="cpu", quantization=quantization)
    HQQLinear.quantize = quantize
    assert len(plain) == 14 and max(plain) <= 2, plain  # the layer itself, and the head


if __name__ == "__main__":
    model, adapter = map(Path, sys.argv[1:])
    check_answers(model, adapter, Quantization(method="hqq", bits=4))
    check_bytes(model, Quantization(method="hqq", bits=4))
    check_answers(model, adapter, Quantization(method="hqq", bits=3, axis=0))
    check_reading(model, Quantization(method="hqq", bits=4))
