"""What a training would take of memory, as a table for a terminal."""

from collections.abc import Iterator

from engines.params.about import spelled
from training.folder import Fit, Memory

GIB = 2**30


def lines_of(memory: Memory) -> Iterator[str]:
    yield f"The largest batch: {memory.texts} x {memory.tokens} tokens. When most memory is in use:"
    for name, size in sorted(memory.parts.items(), key=lambda part: -part[1]):
        yield _line(name, size)
    yield _line("in all", memory.total)
    yield _line(f"free on {memory.device}", memory.available)
    if memory.fits:
        yield "It fits, beside the libraries, which are loaded already."
        return
    yield "It does not fit."
    for change in memory.smaller:
        yield _proposed(change)


def _line(name: str, size: int) -> str:
    return f"  {name:<24}{size / GIB:>10.2f} GiB"


def _proposed(change: Fit) -> str:
    flags = " ".join(f"--{name} {spelled(value)}" for name, value in change.parameters.items())
    return f"  {flags}: {change.total / GIB:.2f} GiB, which {'fits' if change.fits else 'does not fit either'}"
