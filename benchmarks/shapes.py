"""Models of larger shapes with random weights, for what takes as long whatever the weights are."""

import shutil
from pathlib import Path
from typing import Any

from benchmarks.environments import HOME

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8,
    },
}  # fmt: skip
"""Llama 3.2's, but for the vocabulary: that is the demo model's, whose tokenizer they have."""


def model_of(shape: str) -> Path:
    """The folder of such a model, written where it is not there yet."""
    folder = HOME / f"shape-{shape}"
    if not folder.exists():
        partial = HOME / f"shape-{shape}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _write(shape, partial)
        partial.rename(folder)
    return folder


def _write(shape: str, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engines.checkpoint.loading import load_tokenizer
    from engines.setup.demo import demo_model

    tokenizer = load_tokenizer(str(demo_model()))
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    tokenizer.save_pretrained(folder)
