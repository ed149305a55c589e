"""The formula of a `multi` grader: numbers, names, + - * / ^ and a few functions, and nothing else."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from engines.errors import InvalidRequest
from training.rewards.graders.errors import GradeError

TOKEN = re.compile(r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<name>[^\W\d]\w*)|(?P<sign>[-+*/^(),]))")
MAX_DEPTH = 32
"""Parentheses within parentheses, signs before signs."""
Value = Callable[[Mapping[str, float]], float]


class Function(NamedTuple):
    call: Callable[..., float]
    most: int
    """Arguments."""


OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
FUNCTIONS = {
    "min": Function(min, 64),
    "max": Function(max, 64),
    "abs": Function(abs, 1),
    "floor": Function(math.floor, 1),
    "ceil": Function(math.ceil, 1),
    "exp": Function(math.exp, 1),
    "sqrt": Function(math.sqrt, 1),
    "log": Function(math.log, 1),
}


class Formula:
    """`calculate_output`, parsed."""

    def __init__(self, text: str, names: frozenset[str]) -> None:
        """Raises InvalidRequest where it is no formula of `names`."""
        self._value = _Parser(text, names).whole()

    def __call__(self, values: Mapping[str, float]) -> float:
        """Raises GradeError where it has no value, such as 1 / 0."""
        try:
            value = float(self._value(values))
        except (ArithmeticError, ValueError) as error:
            raise GradeError("formula_parse_error", f"calculate_output has no value: {error}") from None
        if not math.isfinite(value):
            raise GradeError("formula_parse_error", f"calculate_output is {value}")
        return value


class _Parser:
    """By precedence, from the least: sums, products, signs, powers (from the right, before a sign to their left)."""

    def __init__(self, text: str, names: frozenset[str]) -> None:
        self._names = names
        self._depth = 0
        self._tokens = _tokens(text)
        self._next = 0

    def whole(self) -> Value:
        value = self._sum()
        if self._sign is not None or self._next < len(self._tokens):
            raise _wrong(f"{self._tokens[self._next][1]!r} is one too many")
        return value

    @property
    def _sign(self) -> str | None:
        kind, text = self._tokens[self._next] if self._next < len(self._tokens) else ("", "")
        return text if kind == "sign" else None

    def _take(self) -> tuple[str, str]:
        if self._next == len(self._tokens):
            raise _wrong("it breaks off")
        self._next += 1
        return self._tokens[self._next - 1]

    def _sum(self) -> Value:
        return self._chain(("+", "-"), self._product)

    def _product(self) -> Value:
        return self._chain(("*", "/"), self._signed)

    def _chain(self, signs: tuple[str, str], operand: Callable[[], Value]) -> Value:
        """Operands from left to right: as many as there are, one by one, however deep the stack is already."""
        first, rest = operand(), []
        while (sign := self._sign) in signs:
            self._take()
            rest.append((OPERATIONS[str(sign)], operand()))
        return partial(_evaluate, first, rest) if rest else first

    def _signed(self) -> Value:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _wrong(f"it is nested deeper than {MAX_DEPTH} levels")
        if (sign := self._sign) in ("+", "-"):
            self._take()
            of = self._signed()
            value: Value = (lambda values: -of(values)) if sign == "-" else of
        else:
            value = self._power()
        self._depth -= 1
        return value

    def _power(self) -> Value:
        value = self._single()
        if self._sign == "^":
            self._take()
            return partial(_evaluate, value, [(math.pow, self._signed())])
        return value

    def _single(self) -> Value:
        kind, text = self._take()
        if kind == "number":
            number = float(text)
            return lambda values: number
        if kind == "name":
            return self._call(text) if self._sign == "(" else self._variable(text)
        if text != "(":
            raise _wrong(f"{text!r} stands where a value should")
        value = self._sum()
        self._close()
        return value

    def _variable(self, name: str) -> Value:
        if name not in self._names:
            raise _wrong(f"there is no grader {name!r}; there are {', '.join(sorted(self._names))}")
        return lambda values: values[name]

    def _call(self, name: str) -> Value:
        if name not in FUNCTIONS:
            raise _wrong(f"there is no function {name!r}; there are {', '.join(FUNCTIONS)}")
        function = FUNCTIONS[name]
        self._take()
        arguments = [self._sum()]
        while self._sign == ",":
            self._take()
            arguments.append(self._sum())
        self._close()
        if len(arguments) > function.most:
            raise _wrong(f"{name} takes {function.most} at most")
        if len(arguments) == 1 and function.most > 1:
            return arguments[0]
        return lambda values: float(function.call(*(argument(values) for argument in arguments)))

    def _close(self) -> None:
        if self._sign != ")":
            raise _wrong("a parenthesis is not closed")
        self._take()


def _tokens(text: str) -> list[tuple[str, str]]:
    found, position, end = [], 0, len(text.rstrip())
    while position < end:
        token = TOKEN.match(text, position)
        if token is None:
            raise _wrong(f"{text[position:].strip()[:10]!r} is not understood")
        assert token.lastgroup is not None
        found.append((token.lastgroup, token[token.lastgroup]))
        position = token.end()
    return found


def _evaluate(
    first: Value, rest: Sequence[tuple[Callable[[float, float], float], Value]], values: Mapping[str, float]
) -> float:
    result = first(values)
    for operation, operand in rest:
        result = operation(result, operand(values))
    return result


def _wrong(reason: str) -> InvalidRequest:
    return InvalidRequest(f"calculate_output is no formula: {reason}.", param="calculate_output")
