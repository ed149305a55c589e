"""How byte-level BPE tokenizers of GGUF files split a text before they encode it, by llama.cpp's names for it."""

import logging
from dataclasses import dataclass
from typing import Any

from engines.checkpoint.gguf.file import GgufFile, unsupported

log = logging.getLogger(__name__)

GPT2 = (
    "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum",
)  # fmt: skip
"""As GPT-2's."""
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""The same, after every digit was put by itself. Granite's is `refact`."""
SAME = {
    "glm4": "llama-bpe", "chatglm-bpe": "llama-bpe", "stablelm2": "qwen2", "hunyuan": "qwen2", "solar-open": "qwen2",
}  # fmt: skip
"""Names for what has another one too."""
WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
"""Words that are tokens are taken as such, whatever merges come to, and texts begin with the first token unless the
file says otherwise."""
COMPOSED = ("qwen2",)
"""Letters and their accents are put together first (NFC)."""


@dataclass(frozen=True, slots=True)
class Split:
    name: str

    @property
    def takes_whole_words(self) -> bool:
        return self.name in WHOLE

    @property
    def normalizer(self) -> Any:
        """One of `tokenizers`, or None."""
        from tokenizers import normalizers

        return normalizers.NFC() if self.name in COMPOSED else None

    @property
    def pre_tokenizer(self) -> Any:
        """One of `tokenizers`."""
        from tokenizers import Regex, pre_tokenizers

        if self.name in GPT2:
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        if self.name in DIGITS:
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            return pre_tokenizers.Sequence(steps)
        words = pre_tokenizers.Split(Regex(_expressions()[SAME.get(self.name, self.name)]), behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def split_of(file: GgufFile) -> Split:
    """Raises UnsupportedModel for one that is not known. A file that names none is warned of."""
    name = file.said.get("tokenizer.ggml.pre")
    if name in (None, "default"):
        log.warning(
            "%s does not say how its tokenizer splits texts (tokenizer.ggml.pre): they are split as GPT-2's", file.path
        )
        return Split(GPT2[0])
    known = {*GPT2, *DIGITS, *SAME, *_expressions()}
    if name not in known:
        listed = ", ".join(sorted(known))
        raise unsupported(file.path, f"has a tokenizer that splits texts as {name}; known are {listed}")
    return Split(name)


def _expressions() -> dict[str, str]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    found: dict[str, str] = GGUF_PRE_TOKENIZER_SPLITS
    return found
