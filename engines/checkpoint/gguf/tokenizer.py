"""The tokenizer of a model in a GGUF file.

transformers' own reading (`gguf_file`) knows fewer ways to split texts, takes the names of DeepSeek's tokens apart,
leaves out which words are taken whole and where texts begin with the first token, and puts no space after it.
"""

from typing import Any

from engines.checkpoint.gguf.file import GgufFile, unsupported
from engines.checkpoint.gguf.pieces import tokenizer_of_pieces
from engines.checkpoint.gguf.splits import Split, split_of
from engines.checkpoint.gguf.vocabulary import (
    CONTROL,
    ENDS,
    SENTENCEPIECE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    special_ids,
    texts,
    vocabulary_of,
)

BYTE_LEVEL = "gpt2"
NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")
"""Of Phi-3's tokens of SentencePiece, those that white space may follow: after the others it is no part of the text."""


def tokenizer_of(file: GgufFile) -> Any:
    """A `PreTrainedTokenizerFast`. Raises UnsupportedModel."""
    from transformers import PreTrainedTokenizerFast

    backend = backend_of(file)
    found = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=file.own("context_length"),
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": backend.id_to_token(id) for name, id in special_ids(file).items() if id is not None},
    )
    found.chat_template = file.said.get("tokenizer.chat_template")
    found.name_or_path = str(file.path)
    return found


def backend_of(file: GgufFile) -> Any:
    """The `tokenizers.Tokenizer`. Raises UnsupportedModel."""
    kind, vocabulary = file.said.get("tokenizer.ggml.model"), vocabulary_of(file)
    if kind == BYTE_LEVEL:
        split = split_of(file)
        tokenizer, begins = _byte_level(file, vocabulary, split), split.takes_whole_words
    elif kind == SENTENCEPIECE:
        tokenizer, begins = tokenizer_of_pieces(file, vocabulary), True
    else:
        raise unsupported(file.path, f"has a tokenizer of the kind {kind}: known are {BYTE_LEVEL} and {SENTENCEPIECE}")
    _add_tokens(tokenizer, vocabulary, stripped=file.architecture == "phi3" and kind == SENTENCEPIECE)
    ends = file.said.get("tokenizer.ggml.add_eos_token", False)
    _surround(tokenizer, file, vocabulary, file.said.get("tokenizer.ggml.add_bos_token", begins), ends)
    return tokenizer


def _byte_level(file: GgufFile, vocabulary: Vocabulary, split: Split) -> Any:
    from tokenizers import Tokenizer, decoders, models

    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    merges: Any = [tuple(pair.split(" ")) for pair in texts(file, "tokenizer.ggml.merges")]
    try:
        tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=split.takes_whole_words))
    except Exception as error:  # tokenizers has no class of its own
        raise unsupported(file.path, f"has a tokenizer whose merges are not of its tokens: {error}") from error
    if (normalizer := split.normalizer) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_tokens(tokenizer: Any, vocabulary: Vocabulary, *, stripped: bool) -> None:
    """Have those found in a text first that are no part of it. `stripped`: with the white space after them."""
    from tokenizers import AddedToken

    found = []
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        special = kind in (CONTROL, UNKNOWN) or token in ENDS
        if special or kind == USER_DEFINED:
            strips = stripped and token not in NOT_STRIPPED
            found.append(AddedToken(token, special=special, normalized=False, rstrip=strips))
    tokenizer.add_tokens(found)


def _surround(tokenizer: Any, file: GgufFile, vocabulary: Vocabulary, begins: bool, ends: bool) -> None:
    """Have texts begin with the first token, and end with the last."""
    from tokenizers import processors

    ids, tokens = special_ids(file), vocabulary.tokens
    wanted = [name for name, put in (("bos", begins), ("eos", ends)) if put and ids[name] is not None]
    around = {name: tokens[ids[name]] for name in wanted}
    if not around:
        return
    before, after = ([around[name]] if name in around else [] for name in ("bos", "eos"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=[(token, ids[name]) for name, token in around.items()],
    )
