"""Logprob entries: a token with the bytes that it adds to the text, given once its text has been."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from engines.text.detokenize import new_utf8_decoder


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token with its logprobs and the bytes that it adds to the shown text.

    Over an output whose bytes are valid UTF-8 the entries' bytes, joined, are the text: a token that is cut by a stop
    string has the part before the cut.
    """

    token_id: int
    shown: bytes
    logprob: float
    top: tuple[tuple[int, float], ...]


class PendingEntries:
    """Logprob entries that wait for their text: for the rest of a character, or for a stop string to be ruled out."""

    def __init__(self) -> None:
        self._waiting: list[tuple[TokenEntry, int, bool]] = []  # entry, end of its text, whether a character ends there
        self._decoded = 0  # characters that the tokens so far have completed
        self._given = 0  # characters that have been given away
        self._start = 0  # where the text of the first waiting entry begins

    def add(self, entry: TokenEntry, characters: int, *, complete: bool) -> None:
        self._decoded += characters
        self._waiting.append((entry, self._decoded, complete))

    def pass_over(self, characters: int) -> None:
        """A token without an entry completed characters."""
        self._decoded += characters

    def release(self, characters: int, *, final: bool) -> tuple[TokenEntry, ...]:
        """Return the entries that end within the text given so far, of which `characters` are new; the final time, what
        is left of all others too."""
        self._given += characters
        if final:
            return self._cut()
        count = 0
        for position, (_, end, complete) in enumerate(self._waiting, 1):
            if end > self._given:
                break
            if complete:
                count, self._start = position, end
        released = tuple(entry for entry, _, _ in self._waiting[:count])
        del self._waiting[:count]
        return released

    def _cut(self) -> tuple[TokenEntry, ...]:
        """All waiting entries, cut where the given text ends."""
        entries = [entry for entry, _, _ in self._waiting]
        if self._given >= self._decoded:
            return tuple(entries)
        left = length_of_characters(b"".join(entry.shown for entry in entries), self._given - self._start)
        kept: list[TokenEntry] = []
        for entry in entries:
            if left <= 0 < len(entry.shown):
                break
            kept.append(TokenEntry(entry.token_id, entry.shown[:left], entry.logprob, entry.top))
            left -= len(entry.shown)
        return tuple(kept)


def that_spell(text: str, pieces: Sequence[bytes]) -> slice:
    """Which of `pieces`, the bytes of tokens that follow one another, make up `text`, the last time that they spell it;
    all where they do not."""
    data = text.encode()
    start = b"".join(pieces).rfind(data) if data else -1
    if start < 0:
        return slice(0, len(pieces))
    ends = list(accumulate(map(len, pieces)))
    return slice(bisect_right(ends, start), bisect_left(ends, start + len(data)) + 1)


def length_of_characters(data: bytes, characters: int) -> int:
    """How many bytes of `data` its first `characters` characters take."""
    decoder = new_utf8_decoder()
    for position in range(len(data)):
        if characters <= 0:
            return position
        characters -= len(decoder.decode(data[position : position + 1]))
    return len(data)
