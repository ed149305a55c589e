"""GGUF, the files of llama.cpp and Ollama: written by the package `gguf`, which has llama.cpp's names and types."""

from importlib.util import find_spec

from engines.errors import UnsupportedModel

ARCHITECTURES = {
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen3ForCausalLM": "QWEN3",
    "GemmaForCausalLM": "GEMMA",
    "Gemma2ForCausalLM": "GEMMA2",
    "Gemma3ForCausalLM": "GEMMA3",
    "Phi3ForCausalLM": "PHI3",
    "GraniteForCausalLM": "GRANITE",
    "SmolLM3ForCausalLM": "SMOLLM3",
}
"""Class of a model -> llama.cpp's architecture."""
INSTALL = "pip install 'tuneserve[gguf]'"


def architecture_of(config: object) -> str:
    """llama.cpp's architecture of a model with this `PreTrainedConfig`. Raises UnsupportedModel."""
    [*_, named] = getattr(config, "architectures", None) or ["?"]
    if named not in ARCHITECTURES:
        message = f"GGUF files are made of {', '.join(ARCHITECTURES)}, not of {named}"
        raise UnsupportedModel(message, param="model")
    if find_spec("gguf") is None:
        raise UnsupportedModel(f"the package gguf is not installed here: {INSTALL}", param="to_gguf")
    return ARCHITECTURES[named]
