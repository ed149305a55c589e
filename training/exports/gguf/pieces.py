"""SentencePiece's BPE as GGUF files have it: pieces with scores, of which the best joins two neighbours first.

A `tokenizer.json` has merges in their place, which transformers has made of the scores: a piece's is minus the place of
the first merge that makes it. Only a tokenizer whose merges are those that follow from the scores is written.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from engines.checkpoint.gguf.pieces import SPACE, merges_of
from engines.checkpoint.gguf.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary
from engines.errors import UnsupportedModel

BYTES = re.compile(r"<0x[0-9A-F]{2}>")
LAST = -1e9
"""The score of a piece that no merge makes."""


def write_pieces(writer: Any, said: dict[str, Any], tokens: Sequence[tuple[str, int]]) -> None:
    """`said`: its `tokenizer.json`; `tokens`: each with its kind. Raises UnsupportedModel."""
    prefix = _puts_space_before(said)
    merges = [_pair(each) for each in said["model"]["merges"]]
    names = [token for token, _ in tokens]
    kinds = [_kind(token, kind, said["model"].get("unk_token")) for token, kind in tokens]
    first = {"".join(pair): place for place, pair in reversed([*enumerate(merges)])}
    scores = [float(-first[token]) if token in first else LAST for token in names]
    _check(Vocabulary(names, kinds), scores, merges)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_as_text(*each) for each in zip(names, kinds, strict=True)])
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(prefix)


def _as_text(token: str, kind: int) -> str:
    """Tokens that are found in a text are kept as they stand there."""
    return token.replace(SPACE, " ") if kind == USER_DEFINED else token


def _kind(token: str, kind: int, unknown: str | None) -> int:
    if token == unknown:
        return UNKNOWN
    return BYTE if BYTES.fullmatch(token) else kind


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _puts_space_before(said: dict[str, Any]) -> bool:
    """Whether a text begins with a space. Raises UnsupportedModel where it is prepared in another way than by that, and
    by SentencePiece's sign for spaces."""
    before, after = _steps(said.get("normalizer"), "normalizers"), _steps(said.get("pre_tokenizer"), "pretokenizers")
    prefix = replaced = False
    for step in (*before, *after):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaced = True
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
                prefix, replaced = scheme != "never", True
            case {"type": "Split", "pattern": {"String": " "}}:  # which finds none: they are replaced before
                pass
            case other:
                raise _unsupported(f"prepares texts by {other.get('type')}")
    if not replaced:
        raise _unsupported("does not replace spaces")
    return prefix


def _steps(step: Any, several: str) -> Iterator[dict[str, Any]]:
    if step is not None:
        yield from step[several] if step["type"] == "Sequence" else (step,)


def _check(vocabulary: Vocabulary, scores: list[float], merges: list[tuple[str, str]]) -> None:
    """Raises UnsupportedModel where joining by these scores would be another tokenizer. Merges of tokens that are found
    in a text before it is taken apart never come to pass."""
    apart = {*vocabulary.of_kind(CONTROL, UNKNOWN, USER_DEFINED, BYTE)}

    def by_piece(pairs: list[tuple[str, str]]) -> dict[str, set[tuple[str, str]]]:
        found: dict[str, set[tuple[str, str]]] = {}
        for pair in pairs:
            if apart.isdisjoint((*pair, "".join(pair))):
                found.setdefault("".join(pair), set()).add(pair)
        return found

    meant, found = by_piece(merges), by_piece(merges_of(vocabulary, scores))
    if [*meant.items()] != [*found.items()]:
        raise _unsupported("joins pieces otherwise than by a score of each")


def _unsupported(reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"GGUF files have no tokenizer like the model's, which {reason}", param="model")
