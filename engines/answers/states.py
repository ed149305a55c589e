"""What parsers of a model's text have in common: states that take what they can of the text that has come."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from engines.answers.deltas import Delta, joined


class StateParser(ABC):
    """`push` every piece of text, then `finish`; joined, the deltas are the same however the text was cut.

    A state takes what it can parse from `_pending`, adds to `_deltas`, and returns False where it needs more text. It
    is told whether this is the last of it.
    """

    def __init__(self) -> None:
        self.done = False
        """Whether the answer is complete, as it has the only call that is wanted. Any further text is dropped."""
        self._state: Callable[[bool], bool] = self._first_state
        self._pending = ""  # text not parsed yet
        self._deltas: list[Delta] = []

    @abstractmethod
    def _first_state(self, last: bool) -> bool: ...

    def push(self, text: str) -> list[Delta]:
        self._pending += text
        return self._run(last=False)

    def finish(self) -> list[Delta]:
        """Return what was held back, at the end of the text."""
        return self._run(last=True)

    def _run(self, *, last: bool) -> list[Delta]:
        while not self.done and self._state(last):
            pass
        deltas, self._deltas = self._deltas, []
        return joined(deltas)
