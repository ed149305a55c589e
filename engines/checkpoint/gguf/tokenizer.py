"""The tokenizer of a model in a GGUF file.

transformers builds it (`gguf_file`); what it does not know of is put right here: how texts are split for SmolLM, of
which it leaves digits together, and whether a text begins with the model's first token.
"""

from typing import Any

from engines.checkpoint.gguf.file import GgufFile, unsupported

BYTE_LEVEL = "gpt2"
PLAIN = ("gpt-2", "default")
"""Names of splits that are GPT-2's, which a file without a name has, too."""
DIGITS = "smollm"
SPACE = "tokenizer.ggml.add_space_prefix"
"""Whether a space is put before texts, as transformers' tokenizer of that kind has it, but for Gemma's."""


def tokenizer_of(file: GgufFile) -> Any:
    """A `PreTrainedTokenizerFast`. Raises UnsupportedModel."""
    from transformers import PreTrainedTokenizerFast

    kind, split = file.said.get("tokenizer.ggml.model"), file.said.get("tokenizer.ggml.pre", PLAIN[0])
    if kind == BYTE_LEVEL and split not in _known_splits():
        known = ", ".join(sorted(_known_splits()))
        raise unsupported(file.path, f"has a tokenizer that splits texts as {split}; known are {known}")
    if kind not in (BYTE_LEVEL, "llama"):
        raise unsupported(file.path, f"has a tokenizer of the kind {kind}: known are {BYTE_LEVEL} and llama")
    if kind == "llama" and not file.architecture.startswith("gemma") and not file.said.get(SPACE, True):
        raise unsupported(file.path, f"has a tokenizer of SentencePiece that is not read here ({SPACE} is false)")
    found = PreTrainedTokenizerFast.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    if kind == BYTE_LEVEL and split == DIGITS:
        _split_digits(found)
    _begin(found, bool(file.said.get("tokenizer.ggml.add_bos_token", kind == "llama")))
    found.model_max_length = file.own("context_length")
    found.name_or_path = str(file.path)
    return found


def _known_splits() -> set[str]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return {*GGUF_PRE_TOKENIZER_SPLITS, *PLAIN, DIGITS}


def _split_digits(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _begin(tokenizer: Any, with_bos: bool) -> None:
    """Have every text begin with the first token, or none."""
    from tokenizers import processors

    bos, id = tokenizer.bos_token, tokenizer.bos_token_id
    begins = id is not None and tokenizer("a").input_ids[:1] == [id]
    if begins == with_bos or (with_bos and id is None):
        return
    made: Any = processors.ByteLevel(trim_offsets=False)
    if with_bos:
        made = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, id)]
        )
    tokenizer.backend_tokenizer.post_processor = made
