"""SentencePiece's tokenizers, trained on a few lines, and GGUF files of them, written as llama.cpp's converter does."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk"}
"""llama.cpp's names of tokens -> SentencePiece's."""
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Dogs and foxes, quickly!",
    "def main():\n\treturn [x for x in range(10)]\n\n\n        # indented",
    "Größe, naïve café, Übung; здравствуй мир, 日本語のテキスト",
    "<table><tr> 1,234.50 on 2024-11-03 </tr></table>",
] * 8
AWKWARD = (
    "", " ", "  ", "a", " a", "the fox", "  the  fox   jumps ", "fox\n\n\tthe\r\n", "2024-11-03: 1,234.50", "déjà vu",
    "e\u0301 und é", "你好 🙂 日本", "\u2581the\u2581\u2581fox", "\x00\x7f\u200b", "foxfoxfox dogdogs", "x" * 40,
    "<table> <tr>\n\n\n</tr>", "<0x41><unk",
)  # fmt: skip
"""Texts that go wrong easily: spaces, bytes, accents, and what looks like a token."""
RUNS = ("<table>", "</tr>", "\n\n", "  ", "   ")
"""As Gemma has them: tags and runs of white space that are tokens whatever stands beside them."""


def trained(*, prefix: bool = True, user_defined: Sequence[str] = (), size: int = 420) -> Any:
    """A `SentencePieceProcessor` of BPE with bytes, as Llama 2's (`prefix`) and Gemma's are."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=made,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        control_symbols=["<|x|>"],
        user_defined_symbols=[each.replace(" ", "\u2581") for each in user_defined],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def write_pieces(pieces: Any, path: Path, architecture: str = "llama", **said: Any) -> Path:
    """A GGUF file with the tokenizer and nothing else of a model. `said`: more of what it says, `__` for dots."""
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # its classes are made while it is imported
    stored = messages.ModelProto.FromString(pieces.serialized_model_proto()).pieces
    plain = [piece.piece.replace("\u2581", " ") if piece.type == USER_DEFINED else piece.piece for piece in stored]
    ids = {f"{name}_token_id": getattr(pieces, f"{ours}_id")() for name, ours in NAMES.items()}
    own = {"model": "llama", "pre": "default", "tokens": plain, "scores": [piece.score for piece in stored]}
    own["token_type"] = [piece.type for piece in stored]  # ggml has SentencePiece's numbers
    return _write(path, architecture, own | ids, said)


def write_merges(tokenizer: Any, path: Path, split: str | None, **said: Any) -> Path:
    """The same of a byte-level BPE tokenizer, a `PreTrainedTokenizerFast`. `split`: llama.cpp's name, or none."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [tokenizer.convert_ids_to_tokens(id) for id in range(len(tokenizer))]
    special = {*tokenizer.all_special_ids, *(id for id, each in tokenizer.added_tokens_decoder.items() if each.special)}
    own = {"model": "gpt2", "tokens": tokens, "merges": [" ".join(pair) for pair in model["merges"]]}
    own["token_type"] = [CONTROL if id in special else NORMAL for id in range(len(tokens))]
    return _write(path, "llama", own | ({} if split is None else {"pre": split}), said)


def _write(path: Path, architecture: str, own: dict[str, Any], said: dict[str, Any]) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    more = {key.replace("__", "."): value for key, value in said.items()}
    for key, value in ({f"tokenizer.ggml.{name}": value for name, value in own.items()} | more).items():
        if value is None:
            continue
        kinds = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        kinds[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
