"""GGUF files of every family say what their models say, and their tokenizers encode alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, LlamaTokenizer, Phi3Config, Qwen2Config
from transformers.models.gemma import GemmaTokenizer

from engines.checkpoint.loading import load_tokenizer
from engines.errors import UnsupportedModel
from tests.engines.checkpoint.test_gguf import FAMILIES, TIED, loaded, logits, model_of
from tests.engines.pt.tiny import CONFIGS, SIZES, byte_level_tokenizer
from tests.gguf_tokenizers import AWKWARD, RUNS, trained
from training.exports.gguf.model import write_model

LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [2.0] * 4, "short_factor": [1.5] * 4}
WRITTEN = FAMILIES | {"phi3 without a window": lambda: Phi3Config(**SIZES)}


@pytest.mark.parametrize("family", sorted(WRITTEN))
def test_a_file_that_is_written_says_what_the_model_says(family: str, tmp_path: Path) -> None:
    model = model_of(WRITTEN[family](), tmp_path / "model")
    write_model(model, byte_level_tokenizer(), tmp_path / "model", tmp_path / "m.gguf", "f32", name=family)
    torch.testing.assert_close(logits(loaded(tmp_path / "m.gguf")), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: Gemma2Config(**TIED, head_dim=8), "queries are scaled by 256, in llama.cpp by 8"),
        (lambda: Gemma3TextConfig(**TIED, layer_types=["full_attention"] * 2), "other layers look back a window"),
        (CONFIGS["gemma"], "llama.cpp has no tensor for lm_head.weight"),
        (CONFIGS["smollm3"], "in all layers but each 4th"),
        (CONFIGS["qwen2-window"], "look back a window of tokens, and llama.cpp's all the way"),
        (lambda: Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=64), "'longrope' is not"),
        (lambda: Qwen2Config(**TIED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
         "rope_type 'dynamic' is not written"),
    ],
    ids=["gemma2", "gemma3", "gemma with a head", "smollm3", "qwen2-window", "longrope", "dynamic"],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(config: Any, reason: str, tmp_path: Path) -> None:
    model = model_of(config(), tmp_path / "model")
    with pytest.raises(UnsupportedModel, match=reason):
        write_model(model, byte_level_tokenizer(), tmp_path / "model", tmp_path / "m.gguf", "f32", name="m")


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_a_text_is_no_longer_than_the_window_that_llama_cpp_does_not_know(family: str, tmp_path: Path) -> None:
    model = model_of(CONFIGS[family](), tmp_path / "model")
    write_model(model, byte_level_tokenizer(), tmp_path / "model", tmp_path / "m.gguf", "f32", name="m")
    assert loaded(tmp_path / "m.gguf").config.max_position_embeddings == model.config.sliding_window


# ---- SentencePiece


PIECES: dict[str, tuple[Any, dict[str, Any]]] = {
    "as llama 2's": (LlamaTokenizer, {}),
    "as gemma's": (GemmaTokenizer, {"prefix": False, "user_defined": RUNS}),
}


@pytest.mark.parametrize("kind", sorted(PIECES))
def test_pieces_are_written_with_scores_by_which_they_are_joined_alike(kind: str, tmp_path: Path) -> None:
    tokenizers, trained_as = PIECES[kind]
    (tmp_path / "tokenizer.model").write_bytes(trained(**trained_as).serialized_model_proto())
    tokenizer = tokenizers.from_pretrained(tmp_path)
    model = model_of(FAMILIES["gemma"](), tmp_path / "model")
    model.config.vocab_size = len(tokenizer)
    write_model(model, tokenizer, tmp_path / "model", tmp_path / "m.gguf", "f32", name="m")
    found = load_tokenizer(str(tmp_path / "m.gguf"))
    for text in (each.replace("\u2581", " ") for each in AWKWARD):
        if not text.startswith(" "):  # before which transformers puts no further space, unlike SentencePiece
            assert found(text).input_ids == tokenizer(text).input_ids, text
