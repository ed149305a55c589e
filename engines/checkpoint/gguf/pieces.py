"""SentencePiece's BPE as GGUF files have it: pieces with scores instead of merges.

Kudo and Richardson 2018 (arXiv:1808.06226). The two neighbours are joined whose piece has the best score, the first of
several; what no piece spells is spelled in bytes. The space before a text is put before everything that follows a
token of its own, too, as llama.cpp puts it there: `<s>[INST]` of Llama 2 and Mistral is `<s>` and `▁[`.
"""

from typing import Any

from engines.checkpoint.gguf.file import GgufFile, unsupported
from engines.checkpoint.gguf.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, special_ids

SPACE = "▁"
PREFIX = "tokenizer.ggml.add_space_prefix"


def tokenizer_of_pieces(file: GgufFile, vocabulary: Vocabulary) -> Any:
    """A `tokenizers.Tokenizer` without special tokens. Raises UnsupportedModel."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.said.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise unsupported(file.path, "has a tokenizer of SentencePiece without a score for each token")
    model = models.BPE(
        {token: id for id, token in enumerate(vocabulary.tokens)},
        merges_of(vocabulary, scores),
        unk_token=vocabulary.tokens[special_ids(file)["unk"]],
        fuse_unk=True,
        byte_fallback=len(vocabulary.of_kind(BYTE)) == 256,
    )
    tokenizer = Tokenizer(model)
    spaces, prefix = normalizers.Replace(" ", SPACE), file.said.get(PREFIX, True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces] if prefix else [spaces])
    chain: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*chain, decoders.Strip(" ", 1, 0)] if prefix else chain)
    return tokenizer


def merges_of(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """The pairs of pieces that are joined, the best first."""
    apart = {*vocabulary.of_kind(CONTROL, UNKNOWN, USER_DEFINED, BYTE)}
    ranks = {
        token: (-score, id)
        for id, (token, score) in enumerate(zip(vocabulary.tokens, scores, strict=True))
        if token not in apart
    }
    pairs = (
        (rank, (token[:at], token[at:]))
        for token, rank in ranks.items()
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    )
    return [pair for _, pair in sorted(pairs)]
