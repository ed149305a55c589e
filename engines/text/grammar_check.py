"""Whether an engine can enforce a constraint, found out within bounds of time and memory.

What takes the compiler long cannot be told from the look of it: a few short patterns that must all match are enough
to keep it busy for hours, and nothing within a process can stop it. So what is not sure to be quick is checked in a
process of its own, which can be ended.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import asdict

from engines.errors import InvalidRequest, QueueFull
from engines.text import grammar_problem
from engines.text.grammar import GBNF_RULE
from engines.text.grammar_problem import Verdict, verdict_of
from engines.types import Structured

PLAIN_TEXT = 16 * 1024
"""Characters of a constraint that is compiled here."""
SLOW = re.compile(r'"patternProperties"|"multipleOf"|(Items|Properties|Length)": *\d{4}|\{\d*,?\d{4}|\\u00[0-7]')
"""What may take long or much memory: many patterns, remainders, repetitions by the thousand, escaped keywords."""
WALL_SECONDS = 15
"""On a machine so busy that the processor's seconds take this long, the check is given up too."""
KEPT = 128
"""Verdicts that are kept."""


def validate(structured: Structured, param: str | None = None) -> Structured:
    """The constraint as engines take it: GBNF is Lark then, and most schemas have rules for white space. Raises
    InvalidRequest, naming `param`, unless an engine can enforce it; QueueFull where the machine is too busy to tell.

    Bounded in time and memory. What people write takes a millisecond or, where it might take the compiler long, a
    tenth of a second the first time; the worst takes seconds: call it in a thread.
    """
    return validated(structured, param)[0]


def validated(structured: Structured, param: str | None = None) -> tuple[Structured, tuple[str, ...]]:
    """The same, with the keywords of a lenient schema that are not enforced."""
    verdict = verdict_of(structured) if is_quick(structured) else _VERDICTS.of(structured)
    if verdict.refusal is not None:
        raise InvalidRequest(verdict.refusal, param=param)
    return verdict.written or structured, verdict.left_out


def is_quick(structured: Structured) -> bool:
    """Whether the compiler is sure to be quick: not much text, no patterns to intersect or to tell apart."""
    value = structured.value
    if len(value) > PLAIN_TEXT or SLOW.search(value):
        return False
    if value.count('"pattern"') + value.count('"format"') > 1:
        return False
    if structured.kind != "grammar":
        return True
    return not any(sign in value for sign in ("&", "~", "\\u")) and not GBNF_RULE.search(value)


class _Verdicts:
    """The verdicts on the last constraints, by their digests."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, structured: Structured) -> Verdict:
        text = json.dumps(asdict(structured)).encode()
        digest = hashlib.sha256(text).digest()
        with self._lock:
            verdict = self._kept.pop(digest, None)
        verdict = verdict or _verdict_within_limits(text, structured)
        with self._lock:
            self._kept[digest] = verdict
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return verdict


_VERDICTS = _Verdicts()


def _verdict_within_limits(text: bytes, structured: Structured) -> Verdict:
    """Check in a process of its own: a tenth of a second at best."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", grammar_problem.__name__],
            input=text,
            capture_output=True,
            check=False,
            timeout=WALL_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    except subprocess.TimeoutExpired:
        raise QueueFull("The machine is too busy to check the constraint; try again") from None
    if child.returncode:
        return Verdict(grammar_problem.refusal(structured.kind, "it is too complex"), None)
    said = json.loads(child.stdout)
    written = None if said["written"] is None else Structured(**said["written"])
    return Verdict(said["refusal"], written, tuple(said["left_out"]))
