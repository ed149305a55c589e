"""A tokenizer as GGUF files have it: byte-level BPE, or SentencePiece's."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.checkpoint.gguf.named import is_gguf
from engines.errors import UnsupportedModel
from engines.text.templates import template_in
from training.exports.gguf.pieces import write_pieces

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
SPLITS = {
    SUFFIXES + WORDS % r"\p{N}": "qwen2",
    SUFFIXES + WORDS % r"\p{N}{1,3}": "llama-bpe",
    "digits": "smollm",
    "": "gpt-2",
}
"""How a text is split before it is encoded -> llama.cpp's name of it. `digits`: each by itself."""


def write_vocabulary(writer: Any, tokenizer: Any, folder: Path, size: int) -> None:
    """Add the tokenizer of a model in `folder`, or a GGUF file, whose embedding has `size` rows. `writer`: a
    `gguf.GGUFWriter`.

    Raises UnsupportedModel.
    """
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [*_tokens(tokenizer, said, size)]
    if said["model"]["type"] == "BPE" and said["model"].get("byte_fallback"):
        write_pieces(writer, said, tokens)
    else:
        _write_merges(writer, said, tokens)
    for name in ("bos", "eos", "pad", "unk"):
        if (id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(id)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    if template := tokenizer.chat_template if is_gguf(str(folder)) else template_in(folder):
        writer.add_chat_template(template)


def _write_merges(writer: Any, said: dict[str, Any], tokens: Sequence[tuple[str, int]]) -> None:
    """Raises UnsupportedModel."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_of(said))
    names, kinds = zip(*tokens, strict=True)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    merges = said["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_add_space_prefix(False)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether it puts its first token before every text."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id


def split_of(said: dict[str, Any]) -> str:
    """llama.cpp's name of how the tokenizer with this `tokenizer.json` splits a text. Raises UnsupportedModel."""
    model, before = said["model"], said.get("pre_tokenizer") or {}
    if model["type"] != "BPE":
        message = "GGUF files are made of models with tokenizers of BPE, byte-level or SentencePiece's"
        raise UnsupportedModel(message, param="model")
    steps = before.get("pretokenizers", [before])
    *splits, last = steps
    how = "".join(map(_split, splits))
    alone = bool(last.get("use_regex", True)) == (how in ("", "digits"))
    normal = (said.get("normalizer") or {}).get("type")
    known = last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and alone and normal in (None, "NFC")
    if not known or how not in SPLITS:
        message = f"llama.cpp has no name for how its tokenizer splits texts ({how[:80] or last.get('type')})"
        raise UnsupportedModel(message, param="model")
    return SPLITS[how]


def _split(step: dict[str, Any]) -> str:
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex", step["pattern"]))
    return str(step["type"])


def _tokens(tokenizer: Any, said: dict[str, Any], size: int) -> Iterator[tuple[str, int]]:
    """Each token and its type."""
    from gguf import TokenType

    added = {each["id"]: each for each in said["added_tokens"]}
    names = {id: token for token, id in tokenizer.get_vocab().items()}
    for id in range(size):
        if id not in names:
            yield f"[PAD{id}]", TokenType.UNUSED
        elif id in added:
            yield names[id], TokenType.CONTROL if added[id]["special"] else TokenType.USER_DEFINED
        else:
            yield names[id], TokenType.NORMAL
