"""The protocol between `serving` and what sends the requests: a JSON line with a Load in, one with the answers out.

Drivers are processes of their own: `client` (over HTTP), `engine_alone` and `static_generate` (without a server).
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.workload import Load


@dataclass(slots=True)
class Answer:
    """One request as its client saw it. Times are of `time.perf_counter`."""

    started: float
    arrivals: list[float] = field(default_factory=list)
    """When each piece of text (or each token, without a server) came."""
    ended: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""


def serve_loads(run: Callable[[Load], list[Answer]], out: Any) -> None:
    """Say that the driver is ready, then answer every Load on stdin until it closes. `out` is the real stdout."""
    _say(out, {"ready": True})
    for line in sys.stdin:
        load = Load(**json.loads(line))
        started = time.perf_counter()
        answers = run(load)
        seconds = time.perf_counter() - started
        _say(out, {"seconds": seconds, "answers": [_as_dict(answer) for answer in answers]})


async def run_concurrently(load: Load, ask: Callable[[Load, int], Awaitable[Answer]]) -> list[Answer]:
    """Keep `load.concurrency` requests going until all have been answered."""
    waiting = iter(range(len(load.messages)))
    answers: list[Answer] = []

    async def worker() -> None:
        for position in waiting:
            answers.append(await ask(load, position))

    await asyncio.gather(*(worker() for _ in range(load.concurrency)))
    return answers


def _as_dict(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in Answer.__dataclass_fields__}


def _say(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()
