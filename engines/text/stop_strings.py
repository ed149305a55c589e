"""Stop strings, searched for in a text that grows."""

from collections.abc import Iterable


class StopStrings:
    """Finds, in a text that arrives in pieces, the stop string that is complete first.

    One Knuth-Morris-Pratt automaton for each string, so that the work for a character does not grow with their length.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.matched = ""
        """The stop string that ended the text, once `feed` has found one."""
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [borders(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)  # how much of each string the text ends with
        self._first = frozenset(stop[0] for stop in self._stops)

    @property
    def partial(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max(self._states, default=0)

    def feed(self, text: str) -> int | None:
        """Return the end, within `text`, of the first stop string that is complete."""
        if not self._stops or (not any(self._states) and self._first.isdisjoint(text)):
            return None
        for position, character in enumerate(text, 1):
            for number, stop in enumerate(self._stops):
                if self._advance(number, character) == len(stop):
                    self.matched = stop
                    return position
        return None

    def _advance(self, number: int, character: str) -> int:
        stop, state = self._stops[number], self._states[number]
        while state and stop[state] != character:
            state = self._borders[number][state - 1]
        if stop[state] == character:
            state += 1
        self._states[number] = state
        return state


def borders(pattern: str) -> list[int]:
    """For each prefix of the pattern, the length of its longest proper prefix that is also its suffix."""
    lengths = [0] * len(pattern)
    state = 0
    for position in range(1, len(pattern)):
        while state and pattern[position] != pattern[state]:
            state = lengths[state - 1]
        if pattern[position] == pattern[state]:
            state += 1
        lengths[position] = state
    return lengths
