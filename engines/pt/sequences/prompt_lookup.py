"""Guesses at the next tokens of a text: what followed where its last tokens stood before.

Prompt lookup (Saxena 2023, "Prompt Lookup Decoding"; vLLM calls it `ngram`): code that is edited, documents that are
quoted and JSON that repeats itself say again what they have said. No model is asked.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

NO_TOKEN = -1
"""An id that no text has: nothing is guessed beyond it."""


class Lookup:
    """One text as it grows, and the corpus that it is looked up in: its own beginning, or another text."""

    def __init__(
        self, text: Sequence[int], *, shortest: int, longest: int, corpus: Sequence[int] | None = None
    ) -> None:
        """`shortest`, `longest`: how many of the last tokens must stand in the corpus, and how many are compared.
        `corpus`: None: the text itself."""
        self._shortest = shortest
        self._longest = longest
        self._buffer = np.array(text, dtype=np.int64)
        self._length = len(text)
        self._corpus = None if corpus is None else np.array(corpus, dtype=np.int64)
        self.reached = 0
        """How far the text has come in the corpus: the place of the token that would follow."""

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take note of what the text goes on with."""
        end = self._length + len(token_ids)
        if end > len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(end, dtype=np.int64)])
        self._buffer[self._length : end] = token_ids
        self._length = end
        corpus = self._looked_in()
        for token_id in token_ids:
            if self.reached < len(corpus) and corpus[self.reached] == token_id:
                self.reached += 1

    @property
    def length(self) -> int:
        return self._length

    def propose(self, count: int) -> list[int]:
        """At most `count` tokens that may come next; none where the last ones stand nowhere in the corpus."""
        text, corpus = self._buffer[: self._length], self._looked_in()
        place = find(corpus, text, self._shortest, self._longest, self.reached)
        if place is None:
            return []
        self.reached = place
        guess: list[int] = corpus[place : place + count].tolist()
        if self._corpus is None:
            # It runs into its own end where a text repeats itself: then it goes on with what it has just said.
            period = len(guess)
            guess += [guess[i % period] for i in range(period, count)]
        return guess[: guess.index(NO_TOKEN)] if NO_TOKEN in guess else guess

    def _looked_in(self) -> Ids:
        return self._buffer[: self._length] if self._corpus is None else self._corpus


def find(corpus: Ids, text: Ids, shortest: int, longest: int, reached: int) -> int | None:
    """The place in `corpus` behind the longest run of tokens that `text` ends with; None where it is too short.

    Of several, the first at `reached` or after it: a text that left the corpus for a few tokens comes back to where it
    left. Else the last.
    """
    if not len(text) or not len(corpus):
        return None
    places = np.flatnonzero(corpus[:-1] == text[-1]) + 1
    length = min(len(places), 1)
    while length and length < min(longest, len(text)):
        further = places[places > length]
        further = further[corpus[further - 1 - length] == text[-1 - length]]
        if not len(further):
            break
        places, length = further, length + 1
    if length < shortest or not length:
        return None
    after = int(np.searchsorted(places, reached))
    return int(places[min(after, len(places) - 1)])
