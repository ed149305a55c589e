"""`python -m tests.engines.pt.serves_on_hqq MODEL ADAPTER`, where HQQ can be imported: the engine's answers on a base
model that HQQ quantised are those of transformers and PEFT."""

import sys
from pathlib import Path

from engines.checkpoint.quantization import Quantization
from tests.engines.pt.test_quantized import check_answers, check_bytes

if __name__ == "__main__":
    model, adapter = map(Path, sys.argv[1:])
    check_answers(model, adapter, Quantization(method="hqq", bits=4))
    check_bytes(model, Quantization(method="hqq", bits=4))
    check_answers(model, adapter, Quantization(method="hqq", bits=3, axis=0))
