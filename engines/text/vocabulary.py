"""What each token of a vocabulary adds to a text, in bytes, whatever way its tokenizer spells them."""

import re
from collections.abc import Callable
from typing import Any, cast

from engines.text.byte_level import byte_level_bytes


class Vocabulary:
    """What each token of a transformers tokenizer adds to a text, in bytes: also for a part of a UTF-8 character."""

    def __init__(self, tokenizer: Any) -> None:
        self.special_ids: frozenset[int] = special_ids(tokenizer)
        self._tokenizer = tokenizer
        self._read = token_reader(tokenizer)
        self._bytes: dict[int, bytes] = {}
        self._first: dict[int, bytes] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token that follows others. b"" for an id that the tokenizer does not know (a padded
        vocabulary)."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._look_up(token_id, first=False)
        return data

    def first_bytes(self, token_id: int) -> bytes:
        """Bytes of a token that begins a text."""
        data = self._first.get(token_id)
        if data is None:
            data = self._first[token_id] = self._look_up(token_id, first=True)
        return data

    def token_text(self, token_id: int) -> str:
        """The token alone, U+FFFD where it is a part of a character."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def _look_up(self, token_id: int, *, first: bool) -> bytes:
        try:
            token = self._tokenizer.convert_ids_to_tokens(token_id)
        except (IndexError, KeyError, OverflowError, ValueError):
            token = None
        if token is None:
            return b""
        return token if isinstance(token, bytes) else self._read(token, first)


def special_ids(tokenizer: Any) -> frozenset[int]:
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


TokenReader = Callable[[str, bool], bytes]
"""A token as the vocabulary spells it, and whether it begins a text, to bytes."""


def token_reader(tokenizer: Any) -> TokenReader:
    """The reader for the tokenizer's way of spelling bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer without one is written in Python
    decoder = None if backend is None else backend.decoder
    spelling = repr(decoder)
    if "ByteLevel(" in spelling:
        return lambda token, first: byte_level_bytes(token)
    join = tokenizer.convert_tokens_to_string if backend is None else decoder_join(decoder)
    has_bytes = backend is None or "ByteFallback(" in spelling
    return lambda token, first: joined_bytes(token, first, join, has_bytes)


def decoder_join(decoder: Any) -> Callable[[list[str]], str]:
    return cast(Callable[[list[str]], str], " ".join if decoder is None else decoder.decode)


BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def joined_bytes(token: str, first: bool, join: Callable[[list[str]], str], has_bytes: bool) -> bytes:
    """What the tokenizer's own decoder makes of the token between two others, or before another."""
    byte = BYTE_TOKEN.fullmatch(token) if has_bytes else None
    if byte is not None and int(byte[1], 16) >= 0x80:
        return bytes([int(byte[1], 16)])  # alone it is no character
    after = join(["a", "a"]).removeprefix("a")
    text = join([token, "a"]) if first else join(["a", token, "a"]).removeprefix("a")
    return text.removesuffix(after).encode()
