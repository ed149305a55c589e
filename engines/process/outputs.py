"""The n outputs of one request, from where they are made to who reads them."""

import asyncio
from typing import Self

from engines.errors import TuneserveError
from engines.types import TokenOutput


class Outputs:
    """Put in by the engine, read once, in the same event loop."""

    def __init__(self, n: int) -> None:
        self.open = set(range(n))
        """Those that more is to come of. The engine need not have been read so far."""
        self._finished: set[int] = set()  # by who reads: what of theirs is still in the queue is not wanted
        self._queue: asyncio.Queue[TokenOutput | TuneserveError | None] = asyncio.Queue()  # None: one was finished

    def put(self, output: TokenOutput) -> None:
        """What comes after an output's end is nobody's."""
        if output.index not in self.open:
            return
        if output.finish_reason is not None:
            self.open.discard(output.index)
        self._queue.put_nowait(output)

    def fail(self, error: TuneserveError) -> None:
        """End all outputs, after what was put in before."""
        self._queue.put_nowait(error)

    def finish(self, index: int) -> bool:
        """Have the reader get nothing more of this output. Returns whether the engine was still at it."""
        self._finished.add(index)
        if index not in self.open:
            return False
        self.open.discard(index)
        self._queue.put_nowait(None)
        return True

    def __aiter__(self) -> Self:
        """What is put in, until every output has ended. Raises what `fail` was told; nothing is open then."""
        return self

    async def __anext__(self) -> TokenOutput:
        while self.open or not self._queue.empty():
            item = await self._queue.get()
            if isinstance(item, TuneserveError):
                self.open.clear()
                raise item
            if item is not None and item.index not in self._finished:
                return item
        raise StopAsyncIteration
