"""The forms that a model is exported in beside that of its folder: GGUF files, Ollama's models, PEFT's adapters.
Additions to the reference's documented parameters; `to_ollama` and `to_peft_format` it has by these names."""

from typing import Annotated, Literal

from engines.params.about import EXPORT, About
from engines.params.base import Params

GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0",
    "q3_k_m", "q2_k",
]  # fmt: skip


class FormParams(Params):
    """The forms that a model is exported in."""

    to_gguf: Annotated[GgufType | None, About(EXPORT)] = None
    """Write a GGUF file, which llama.cpp and Ollama read, with weights of this type: `f16`, `q8_0`, `q4_k_m` and others
    by llama.cpp's names. An adapter that is not merged becomes a GGUF file of its own, in `f32`, `f16` or `bf16`."""
    to_ollama: Annotated[bool, About(EXPORT)] = False
    """Write a Modelfile beside the GGUF file, with the model's chat template as Ollama has templates: `ollama create`
    makes a model of it. Weights are in `f16` unless `to_gguf` says."""
    to_peft_format: Annotated[bool, About(EXPORT)] = False
    """Write the adapter as PEFT loads it, and nothing else: what the checkpoint has for going on with the training
    stays behind, and a LoRA adapter in the form of ms-swift's own tuners becomes one of PEFT's."""
