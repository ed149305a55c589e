"""How many requests of each share an engine has, and which share may have one more where the queue is full."""

from collections import Counter

from engines.types import GenerationRequest, PoolingRequest

Request = GenerationRequest | PoolingRequest


class Places:
    def __init__(self, count: int) -> None:
        """`count`: requests that run or wait, where the queue is full."""
        self._count = count
        self._taken: Counter[str | None] = Counter()
        self._weights: dict[str | None, float] = {}

    def take(self, request: Request) -> None:
        self._taken[request.share] += 1
        self._weights[request.share] = request.weight

    def leave(self, request: Request) -> None:
        self._taken[request.share] -= 1
        if not self._taken[request.share]:
            del self._taken[request.share], self._weights[request.share]

    def are_left(self, request: Request) -> bool:
        """Whether its share has less than its part, where the queue has been filled by others.

        The parts are by weight, and the smaller the more shares there are: k shares of one weight have at most
        1 + 1/2 + ... + 1/k times as many requests.
        """
        if not self._taken.keys() - {request.share}:
            return False
        weights = self._weights | {request.share: request.weight}
        part = self._count * request.weight / sum(weights.values())
        return self._taken[request.share] < part
