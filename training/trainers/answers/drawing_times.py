"""How long answers are drawn, from one log to the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class DrawingTimes:
    def __init__(self) -> None:
        self._logged = perf_counter()
        self._waited = 0.0
        self._ahead = 0.0
        self._tokens = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The trainer waits for answers."""
        began = perf_counter()
        try:
            yield
        finally:
            self._waited += perf_counter() - began

    def add_tokens(self, count: int) -> None:
        """So many tokens were drawn."""
        self._tokens += count

    def taken(self, ahead: float | None = None) -> dict[str, float]:
        """The share of all time in which answers were drawn, with `ahead` also that in which engine and trainer both
        worked, and tokens a second of drawing. They begin anew.

        ahead: seconds in which answers were drawn since the training began, where the trainer did not wait for all
        """
        now = perf_counter()
        seconds = max(now - self._logged, 1e-9)
        drawn = self._waited if ahead is None else ahead - self._ahead
        told = {"rollouts/share_of_time": min(drawn / seconds, 1.0)}
        if ahead is not None:
            told["rollouts/overlap"] = min(max(drawn - self._waited, 0.0) / seconds, 1.0)
            self._ahead = ahead
        if drawn:
            told["rollouts/tokens_per_second"] = self._tokens / drawn
        self._logged, self._waited, self._tokens = now, 0.0, 0
        return told
