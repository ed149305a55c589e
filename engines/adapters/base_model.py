"""Whether an adapter says that it was trained on the model that is served, as far as names tell."""

import re

from engines.adapters.spec import AdapterSpec
from engines.checkpoint.gguf.named import name_of
from engines.errors import InvalidAdapter

FORM = re.compile(
    r"""[-_. ]+(
        gguf | i?mat(rix)?\d* | i1 | ud            # a file of llama.cpp's, and how it was measured
        | (i?q|tq)\d(_[a-z0-9]+)* | mxfp4 | nvfp4  # its types
        | f32 | fp32 | f16 | fp16 | bf16
        | gptq | awq | hqq | eetq | bnb | torchao | autoround | marlin | nf4 | fp4 | fp8(_e4m3)? | quantized
        | w\d+a\d+(g\d+)? | (u?int)?\d+bits? | u?int\d+ | g(32|64|128) | dynamic
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
"""The last word of a name, where it tells how the weights are kept and not which they are."""


def check_base_model(spec: AdapterSpec, model: str) -> None:
    """Refuse an adapter that says it was trained on another model. Raises InvalidAdapter.

    The last part of the names decides, as a hub id and the folder of a copy differ in what comes before it, without
    the words that tell how the weights are kept: `SmolLM2-135M-Instruct-Q8_0.gguf` is `SmolLM2-135M-Instruct`.
    """
    if spec.base_model and weights_name(spec.base_model) != weights_name(model):
        named, served = name_of(spec.base_model), name_of(model)
        message = f"the adapter was trained on {named[:100]!r}, and this server serves {served!r}"
        raise InvalidAdapter(message, param="base_model_name_or_path")


def weights_name(model: str) -> str:
    """What the weights are called, whatever they are kept in: in small letters."""
    name = name_of(model)
    while (form := FORM.search(name)) and form.start() > 0:
        name = name[: form.start()]
    return name.lower()
