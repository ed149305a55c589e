"""The n outputs of one request, from where they are made to who reads them."""

import asyncio
from collections import deque
from typing import Self

from engines.errors import TuneserveError
from engines.types import TokenOutput


class Outputs:
    """Put in by the engine, read once, in the same event loop. Whoever reads is woken up once for all that came."""

    def __init__(self, n: int) -> None:
        self.open = set(range(n))
        """Those that more is to come of. The engine need not have been read so far."""
        self._finished: set[int] = set()  # by who reads: what of theirs is still ready is not wanted
        self._ready: deque[TokenOutput | TuneserveError] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, output: TokenOutput) -> None:
        """What comes after an output's end is nobody's."""
        if output.index not in self.open:
            return
        if output.finish_reason is not None:
            self.open.discard(output.index)
        self._ready.append(output)
        self._wake()

    def fail(self, error: TuneserveError) -> None:
        """End all outputs, after what was put in before."""
        self._ready.append(error)
        self._wake()

    def finish(self, index: int) -> bool:
        """Have the reader get nothing more of this output. Returns whether the engine was still at it."""
        self._finished.add(index)
        if index not in self.open:
            return False
        self.open.discard(index)
        self._wake()
        return True

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def next(self) -> TokenOutput | None:
        """What was put in first; None where there is nothing. Raises what `fail` was told; nothing is open then."""
        while self._ready:
            item = self._ready.popleft()
            if isinstance(item, TuneserveError):
                self.open.clear()
                raise item
            if item.index not in self._finished:
                return item
        return None

    def news(self) -> asyncio.Future[None]:
        """Done once there is something to read, or nothing more to come."""
        self._reader = asyncio.get_running_loop().create_future()
        return self._reader

    def __aiter__(self) -> Self:
        """What is put in, until every output has ended."""
        return self

    async def __anext__(self) -> TokenOutput:
        while (output := self.next()) is None:
            if not self.open:
                raise StopAsyncIteration
            await self.news()
        return output
