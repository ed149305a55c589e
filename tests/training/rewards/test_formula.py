"""The formula of a `multi` grader: arithmetic, and nothing else."""

import pytest

from engines.errors import InvalidRequest
from training.rewards.graders.errors import GradeError
from training.rewards.graders.formula import Formula

VALUES = {"a": 0.5, "b": 2.0, "c_2": 3.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.5),
        ("(a + b) / 2", 1.25),
        ("a - b - c_2", -4.5),
        ("c_2 / b / a", 3.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-b ^ 2", -4.0),
        ("b ^ -1", 0.5),
        ("- - a", 0.5),
        ("1 + 2 * 3", 7.0),
        ("min(a, b, c_2) + max(a, b)", 2.5),
        ("abs(-3) + floor(2.7) + ceil(2.1)", 8.0),
        ("sqrt(4) + exp(0) + log(1)", 3.0),
        ("max(a)", 0.5),
        ("1e-1 + .5", 0.6),
        ("+".join(["a"] * 499), 249.5),
    ],
)
def test_it_has_a_value(text: str, value: float) -> None:
    assert Formula(text, frozenset(VALUES))(VALUES) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("d", "there is no grader 'd'; there are a, b, c_2"),
        ("pow(a, b)", "there is no function 'pow'"),
        ("__import__('os')", "is not understood"),
        ("a.real", "'.real'"),
        ("a +", "it breaks off"),
        ("(a", "a parenthesis is not closed"),
        ("a b", "'b' is one too many"),
        ("a)", "')' is one too many"),
        ("a ** b", "'*' stands where a value should"),
        ("abs(a, b)", "abs takes 1 at most"),
        ("min()", "')' stands where a value should"),
        ("(" * 400 + "a" + ")" * 400, "nested deeper than 32"),
        ("-" * 400 + "a", "nested deeper than 32"),
        ("a if a else b", "'if' is one too many"),
        ("a[0]", "'[0]'"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Formula(text, frozenset(VALUES))
    assert told in refused.value.message


@pytest.mark.parametrize(
    "text", ["1 / (a - a)", "sqrt(-1)", "log(0)", "9^9^9^9", "1e308 * 10", "(-1) ^ 0.5", "exp(1e9)"]
)
def test_what_has_no_value_is_an_error_of_the_grade(text: str) -> None:
    with pytest.raises(GradeError):
        Formula(text, frozenset(VALUES))(VALUES)
