"""Stop strings, searched for in a text that grows."""

from collections.abc import Iterable


class StopTable:
    """What a request's outputs search for, worked out once for all of them.

    The automaton of Aho and Corasick (1975, "Efficient string matching"): one state for each beginning of a stop
    string, so that the work for a character grows neither with the number of the strings nor with their length.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self.first: frozenset[str]
        """Characters with which a stop string begins."""
        self.lengths = [0]
        """State -> how many of the last characters may be the beginning of a stop string."""
        self.matches = [""]
        """State -> the longest stop string that is complete; "" where none is."""
        self._steps: dict[tuple[int, str], int] = {}
        self._fallbacks = [0]  # state -> that of the longest shorter beginning that the text ends with as well
        self._build(list(dict.fromkeys(stops)))
        self.first = frozenset(character for state, character in self._steps if state == 0)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (following := self._steps.get((state, character))) is None:
            if not state:
                return 0
            state = self._fallbacks[state]
        return following

    def _build(self, stops: list[str]) -> None:
        """All first characters, then all second ones: whatever a state falls back to is there before it."""
        states = [0] * len(stops)
        for position in range(max(map(len, stops), default=0)):
            for number, stop in enumerate(stops):
                if position < len(stop):
                    states[number] = self._child(states[number], stop[position])
                if position == len(stop) - 1:
                    self.matches[states[number]] = stop

    def _child(self, state: int, character: str) -> int:
        if (state, character) in self._steps:
            return self._steps[state, character]
        fallback = self.step(self._fallbacks[state], character) if state else 0
        self._steps[state, character] = child = len(self.lengths)
        self.lengths.append(self.lengths[state] + 1)
        self.matches.append(self.matches[fallback])
        self._fallbacks.append(fallback)
        return child


NO_STOPS = StopTable()


class StopStrings:
    """Finds, in a text that arrives in pieces, the stop string that is complete first, the longest of several."""

    def __init__(self, table: StopTable) -> None:
        self.matched = ""
        """The stop string that ended the text, once `feed` has found one."""
        self._table = table
        self._state = 0

    @property
    def partial(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return self._table.lengths[self._state]

    def feed(self, text: str) -> int | None:
        """Return the end, within `text`, of the first stop string that is complete."""
        table, state = self._table, self._state
        if not state and table.first.isdisjoint(text):
            return None
        for position, character in enumerate(text, 1):
            state = table.step(state, character)
            if table.matches[state]:
                self._state, self.matched = state, table.matches[state]
                return position
        self._state = state
        return None
