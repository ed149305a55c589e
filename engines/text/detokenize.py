"""Token ids to text, incremental and with true bytes.

The text of an output is the UTF-8 reading of its tokens' bytes, one after another. So a token's bytes are looked up
once, every step costs the same however long the output is, and a character appears when its last byte has come.
"""

import codecs
from collections.abc import Callable

from engines.text.vocabulary import Vocabulary


class Detokenizer:
    """Bytes of successive tokens to text; bytes of a character that is not complete yet are kept back."""

    def __init__(self, vocabulary: Vocabulary, *, starts_text: bool) -> None:
        self._vocabulary = vocabulary
        self._utf8 = new_utf8_decoder()
        self._at_start = starts_text
        self.decode: Callable[[bytes], str] = self._utf8.decode

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to the text. To be called once for each token that is shown, in order."""
        if not self._at_start:
            return self._vocabulary.token_bytes(token_id)
        self._at_start = not self._vocabulary.token_bytes(token_id)
        return self._vocabulary.first_bytes(token_id)

    @property
    def complete(self) -> bool:
        """No character is half way."""
        return not self._utf8.getstate()[0]

    def flush(self) -> str:
        """U+FFFD where the text ends within a character."""
        return self._utf8.decode(b"", final=True)


def new_utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
