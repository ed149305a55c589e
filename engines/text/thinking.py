"""The most tokens of reasoning that an output may have, kept while its tokens come."""

from collections.abc import Callable

from engines.types import ThinkingBudget


class Thinking:
    """Follows one output until its reasoning is over, by the text of its tokens, as whoever reads the output does: a
    tag that the model spells in several tokens is a tag, too."""

    def __init__(self, budget: ThinkingBudget, token_bytes: Callable[[int], bytes]) -> None:
        """`token_bytes`: what a token adds to the text."""
        self._end_ids = budget.end_ids
        self._start, self._end = budget.start.encode(), budget.end.encode()
        self._token_bytes = token_bytes
        self._inside = budget.is_open
        self._left = budget.tokens
        self._closing = 0
        """Number of `end_ids` that have come in place of the model's own choice."""
        self._text = b""
        """What may still turn out to be a tag."""
        self.over = False
        """Nothing that comes from here on is reasoning."""

    @property
    def forced(self) -> int | None:
        """The token that must come next, as the budget is used up; None while any may come."""
        return self._end_ids[self._closing] if self._inside and not self.over and self._left <= 0 else None

    def accept(self, token_id: int) -> None:
        """Take note of the token that the output was given."""
        if self.over:
            return
        self._closing = self._closing + 1 if token_id == self.forced else 0
        self._text += self._token_bytes(token_id)
        if not self._inside:
            self._look_for_start()
            return
        self._left -= 1
        self._look_for_end()

    def _look_for_start(self) -> None:
        text = self._text.lstrip()
        if text.startswith(self._start):
            self._inside, self._text = True, text.removeprefix(self._start)
            self._look_for_end()
        else:
            self.over = not self._start.startswith(text)

    def _look_for_end(self) -> None:
        self.over = self._end in self._text or self._closing == len(self._end_ids)
        self._text = self._text[1 - len(self._end) :]
