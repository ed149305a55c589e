"""Why llguidance cannot run a grammar.

As a program, within limits: `python -m engines.text.grammar_problem < CONSTRAINT`. The constraint is a JSON object of
the fields of `Structured`. What is written is a JSON object: `refusal`, why it cannot be enforced or null, and
`written`, what engines get in its place, or null where they get that; and `left_out`, keywords that are not enforced.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass
from functools import cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from engines.errors import InvalidRequest
from engines.text.grammar import NAMES, parser_limits, shorten, to_llguidance, with_white_space, without_gbnf
from engines.types import Structured, StructuredKind

CPU_SECONDS = 3
MEMORY = 1 << 30
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    refusal: str | None
    """Why no engine can enforce the constraint."""
    written: Structured | None
    """What engines get in its place, where that is something else."""
    left_out: tuple[str, ...] = ()
    """Keywords of its schema that are not enforced."""


def verdict_of(structured: Structured) -> Verdict:
    """Say whether an engine can enforce a constraint. May take for ever: see `grammar_check`."""
    try:
        written = without_gbnf(structured)
        problem = _refusal_of(written)
        left_out = _left_out(written) if problem is None and written.lenient else ()
        spread = with_white_space(written) if problem is None else None
    except InvalidRequest as error:
        return Verdict(error.message, None)
    if spread is not None and _refusal_of(spread) is None:
        written = spread
    return Verdict(problem, None if written == structured else written, left_out)


def _left_out(structured: Structured) -> tuple[str, ...]:
    warnings = " ".join(_warnings(to_llguidance(structured)))
    keywords = [word for words in re.findall(r"Unimplemented keys: \[(.*?)\]", warnings) for word in words.split(", ")]
    keywords += ["oneOf"] * ("oneOf not fully supported" in warnings) + ["format"] * ("Unknown format" in warnings)
    return tuple(sorted({keyword.strip('"') for keyword in keywords}))


def _refusal_of(structured: Structured) -> str | None:
    try:
        grammar = to_llguidance(structured)
    except InvalidRequest as error:
        return error.message
    problem = _compile_problem(grammar) or _first_step_problem(grammar)
    return None if problem is None else refusal(structured.kind, problem)


def refusal(kind: StructuredKind, problem: str) -> str:
    return f"Invalid {NAMES[kind]}: {shorten(problem)}"


def _compile_problem(grammar: str) -> str | None:
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=parser_limits())
    return messages[0].replace("Unimplemented keys:", "keywords that cannot be enforced:") if failed else None


def _warnings(grammar: str) -> list[str]:
    warnings: list[str] = LLMatcher.validate_grammar_with_warnings(grammar, limits=parser_limits())[1]
    return warnings


def _first_step_problem(grammar: str) -> str | None:
    """Say why a well-formed grammar cannot be run: some show it only with the first token."""
    if any("no tokenizer" in warning for warning in _warnings(grammar)):
        return None  # It names tokens of the model's vocabulary, which only the engine knows.
    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=parser_limits())
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        return "no text can match it"
    first = next((byte for byte in range(_END) if mask[byte // 8] >> byte % 8 & 1), None)
    if matcher.is_accepting() or (first is not None and matcher.consume_token(first)):
        return None
    return "it is too complex"


_END = 256


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


class _Bytes:
    """A vocabulary of the 256 bytes and an end: enough to run a grammar without a model."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(_END)), b"<|end|>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _limit_resources() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows; the time limit of the parent holds there
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    _limit_resources()
    sys.stdout.write(json.dumps(asdict(verdict_of(Structured(**json.loads(sys.stdin.buffer.read()))))))
