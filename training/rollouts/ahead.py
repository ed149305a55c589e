"""Answers that a thread draws while whoever asked for them learns from the first.

No answer is of a stale policy: other weights are taken over, and the base model is asked, between two draws only.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from time import perf_counter

from engines.errors import TuneserveError
from training.rollouts.engine import EngineRollouts
from training.rollouts.types import Asked, Drawing, Rollout

Groups = Iterator[list[Rollout]]


class AheadRollouts:
    """Answers of an engine on a device of its own: see `JudgingRollouts`."""

    def __init__(self, engine: EngineRollouts) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._running: Future[None] | None = None
        self.seconds = 0.0
        """Time in which answers were drawn, by the draws that have ended."""

    @property
    def version(self) -> int:
        return self._engine.version

    def draw(
        self, prompts: Sequence[Sequence[int]], n: int, drawing: Drawing, *, seed: int, places: Sequence[int] = ()
    ) -> list[list[Rollout]]:
        return list(self.groups(prompts, n, drawing, seed=seed, places=places))

    def groups(
        self, prompts: Sequence[Sequence[int]], n: int, drawing: Drawing, *, seed: int, places: Sequence[int] = ()
    ) -> Groups:
        """The answers to each prompt in turn, as soon as they are there: the draw has begun, and goes on meanwhile.

        Raises as `draw`, in the place of the first group that is missing.
        """
        self._wait()
        ready: SimpleQueue[list[Rollout] | None] = SimpleQueue()
        groups = self._engine.groups(prompts, n, drawing, seed=seed, places=places)
        self._running = self._thread.submit(self._draw, groups, ready)
        return self._handed_over(ready, self._running)

    def ask_base(self, asked: Sequence[Asked]) -> list[list[int] | TuneserveError]:
        self._wait()
        return self._engine.ask_base(asked)

    def take_over(self) -> None:
        self._wait()
        self._engine.take_over()

    def close(self) -> None:
        """End a draw that still runs, and give up the engine's memory."""
        self._engine.stop()
        self._thread.shutdown()
        self._engine.close()

    def _draw(self, groups: Groups, ready: "SimpleQueue[list[Rollout] | None]") -> None:
        began = perf_counter()
        try:
            for group in groups:
                ready.put(group)
        finally:
            self.seconds += perf_counter() - began
            ready.put(None)

    def _handed_over(self, ready: "SimpleQueue[list[Rollout] | None]", running: "Future[None]") -> Groups:
        while (group := ready.get()) is not None:
            yield group
        running.result()

    def _wait(self) -> None:
        """Let a draw come to its end."""
        if self._running is not None:
            self._running.result()
