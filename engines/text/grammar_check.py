"""Whether an engine can enforce a constraint, found out within bounds of time and memory.

What takes the compiler long cannot be told from the look of it: a few short patterns that must all match are enough
to keep it busy for hours, and nothing within a process can stop it. So what is not sure to be quick is checked in a
process of its own, which can be ended.
"""

import os
import subprocess
import sys
import threading
from functools import lru_cache

from engines.errors import InvalidRequest, QueueFull
from engines.text import grammar_problem
from engines.text.grammar import NAMES, shorten, to_llguidance
from engines.types import Structured, StructuredKind

PLAIN_TEXT = 16 * 1024
"""Characters of a grammar that is compiled here."""
WALL_SECONDS = 15
"""On a machine so busy that the processor's seconds take this long, the check is given up too."""

_one_at_a_time = threading.Lock()


def validate(structured: Structured, param: str | None = None) -> None:
    """Raise InvalidRequest, naming `param`, unless an engine can enforce the constraint.

    Bounded in time and memory. What people write takes a millisecond or, where it might take the compiler long, a
    tenth of a second the first time; the worst takes seconds: call it in a thread.
    """
    try:
        grammar = to_llguidance(structured)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from None
    problem = (
        grammar_problem.problem_of(grammar) if _is_plain(structured.kind, grammar) else problem_within_limits(grammar)
    )
    if problem:
        raise InvalidRequest(f"Invalid {NAMES[structured.kind]}: {shorten(problem)}", param=param)


def _is_plain(kind: StructuredKind, grammar: str) -> bool:
    """Whether the compiler is sure to be quick: not much text, no patterns to intersect or to tell apart."""
    if len(grammar) > PLAIN_TEXT or '"patternProperties"' in grammar:
        return False
    if grammar.count('"pattern"') + grammar.count('"format"') > 1:
        return False
    return kind != "grammar" or not any(sign in grammar for sign in ("&", "~", "\\u"))


@lru_cache(maxsize=256)
def problem_within_limits(grammar: str) -> str | None:
    """Say why llguidance cannot run a grammar, None where it can. Takes a tenth of a second where nothing is wrong.

    Raises QueueFull while the machine is busy with others.
    """
    if not _one_at_a_time.acquire(timeout=WALL_SECONDS):
        raise QueueFull("Too many constraints are being checked; try again")
    try:
        child = subprocess.run(
            [sys.executable, "-m", grammar_problem.__name__],
            input=grammar.encode(),
            capture_output=True,
            check=False,
            timeout=WALL_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    except subprocess.TimeoutExpired:
        raise QueueFull("The machine is too busy to check the constraint; try again") from None
    finally:
        _one_at_a_time.release()
    return (child.stdout.decode() or None) if child.returncode == 0 else "it is too complex"
