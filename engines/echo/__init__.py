"""An engine without a model: it says the prompt's last message back, one token a step. For tests and documentation.

Everything around the model is real: queue, aborts, stop tokens, logprobs, `n`, faults. It keeps every promise of
`engines.engine.Engine`, so that what is built above can be tried in milliseconds.
"""

from engines.echo.adapters import adapter_support
from engines.echo.engine import EchoEngine, EchoFaults
from engines.echo.tokenizer import BYTES, END_OF_TEXT, IM_END, IM_START, VOCAB_SIZE, echo_tokenizer

__all__ = [
    "BYTES",
    "END_OF_TEXT",
    "IM_END",
    "IM_START",
    "VOCAB_SIZE",
    "EchoEngine",
    "EchoFaults",
    "adapter_support",
    "echo_tokenizer",
]
