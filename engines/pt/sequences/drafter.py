"""One sequence's guesses at its next tokens: where they come from, and how many are worth their rows."""

import math
from dataclasses import dataclass

from engines.pt.sequences.prompt_lookup import Lookup

LEARNED = 0.2
"""How much one right or wrong guess counts against all before it."""

SUREST = 0.95
"""No guess is surer than this one, however many were right."""


@dataclass(slots=True)
class Source:
    """A text that guesses come from, and how good they have been."""

    lookup: Lookup
    begins: int
    """Where the lookup's text begins in the sequence."""
    most: int
    """The most guesses at a time."""
    likelihood: float
    """How likely it is that a guess is right where those before it were."""
    prediction: "Prediction | None" = None
    """What has come of it, where it is what the client predicted."""

    def follow(self, tokens: list[int]) -> None:
        """Take note of what came since: `tokens` are all of the sequence."""
        self.lookup.extend(tokens[self.begins + self.lookup.length :])

    def learn(self, *, right: bool) -> None:
        self.likelihood += LEARNED * (right - self.likelihood)

    def worth(self, least: float) -> int:
        """How many guesses in a row are all right with a likelihood of `least` at any rate."""
        if self.likelihood <= least:
            return 0
        return min(self.most, int(math.log(least) / math.log(min(self.likelihood, SUREST))))


class Prediction:
    """The tokens of a prediction that were tried, each counted once however often it was."""

    def __init__(self) -> None:
        self._tried: set[int] = set()
        self._accepted: set[int] = set()

    def add(self, draft: "Draft") -> tuple[int, int]:
        """How many more tokens have been accepted, and how many more were tried and have not: fewer than none where
        tokens came at last that had been tried before."""
        accepted, rejected = self._counts()
        self._tried.update(range(draft.place, draft.place + draft.rows))
        self._accepted.update(range(draft.place, draft.place + draft.accepted))
        accepted_now, rejected_now = self._counts()
        return accepted_now - accepted, rejected_now - rejected

    def _counts(self) -> tuple[int, int]:
        return len(self._accepted), len(self._tried - self._accepted)


@dataclass(slots=True)
class Draft:
    """The guesses at what a sequence gets in one step."""

    source: Source
    place: int
    """Where they begin in what was looked in."""
    token_ids: list[int]
    rows: int
    """How many of them the step computes. Where it is none, the first is compared all the same: that costs nothing, and
    so it is found out when bad guesses have become good."""
    right: int = 0

    @property
    def accepted(self) -> int:
        """Number of computed guesses that were right."""
        return min(self.right, self.rows)

    def compare(self, token_id: int) -> bool:
        """Whether the next token, which is known now, was guessed and computed: then the row after it is good, too."""
        if self.right >= max(self.rows, 1):
            return False
        right = self.token_ids[self.right] == token_id
        self.source.learn(right=right)
        self.right += right
        return right and self.right <= self.rows


class Drafter:
    """Guesses by the first of its sources that has one."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources

    def propose(self, tokens: list[int], *, least: float, most: int) -> Draft | None:
        """Guess what follows the sequence's `tokens`. The step is to compute at most `most` guesses, and no further
        than all of them are right with a likelihood of `least`."""
        for source in self._sources:
            source.follow(tokens)
        for source in self._sources:
            worth = min(source.worth(least), most)
            if guess := source.lookup.propose(max(worth, 1)):
                return Draft(source, source.lookup.reached, guess, min(worth, len(guess)))
        return None
