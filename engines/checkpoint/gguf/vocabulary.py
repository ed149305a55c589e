"""The tokens of a model in a GGUF file, and what they are for."""

from dataclasses import dataclass
from typing import Any

from engines.checkpoint.gguf.file import GgufFile, Texts, unsupported

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""ggml's kinds of tokens."""
SENTENCEPIECE = "llama"
"""`tokenizer.ggml.model` of tokenizers of SentencePiece's BPE."""
SENTENCEPIECE_IDS = {"unk": 0, "bos": 1, "eos": 2}
"""Where a file of these says nothing of them."""
NAMES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""transformers' names of tokens -> llama.cpp's."""
ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "<end_of_utterance>",
)  # fmt: skip
"""Tokens that end an answer whatever the file says of them: most files name one end, and families have several."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    tokens: list[str]
    kinds: list[int]
    """Of each token."""

    def of_kind(self, *kinds: int) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


def vocabulary_of(file: GgufFile) -> Vocabulary:
    """Raises UnsupportedModel."""
    tokens = texts(file, "tokenizer.ggml.tokens")
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]
    kinds = file.said.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise unsupported(file.path, f"has {len(tokens)} tokens and the kinds of {len(kinds)}")
    for name, id in special_ids(file).items():
        if id is not None and id >= len(tokens):
            raise unsupported(file.path, f"has {len(tokens)} tokens, and its {name} is the token {id}")
    return Vocabulary(tokens, kinds)


def texts(file: GgufFile, name: str) -> list[str]:
    """A list of texts that it has to have. Raises UnsupportedModel."""
    found = file.said.get(name)
    if not isinstance(found, Texts):
        raise unsupported(file.path, f"does not say its {name}")
    try:
        return found.read()
    except UnicodeDecodeError as error:
        raise unsupported(file.path, f"has no text in {name}: {error}") from error


def special_ids(file: GgufFile) -> dict[str, Any]:
    """transformers' names of tokens (`bos`, `eos`, `pad`, `unk`) and their ids, or None."""
    known = SENTENCEPIECE_IDS if file.said.get("tokenizer.ggml.model") == SENTENCEPIECE else {}
    return {ours: file.said.get(f"tokenizer.ggml.{theirs}_token_id", known.get(ours)) for ours, theirs in NAMES.items()}


def end_ids(file: GgufFile) -> list[int]:
    """The tokens that end an answer: those that the file names, that of its texts first."""
    named = [special_ids(file)["eos"], *(file.said.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom"))]
    if isinstance(tokens := file.said.get("tokenizer.ggml.tokens"), Texts):
        named += tokens.places(ENDS)
    return list(dict.fromkeys(each for each in named if each is not None))
