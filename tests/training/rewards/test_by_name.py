"""Rewards by name, and functions in files."""

from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest
from training.rewards.by_name import reward_named
from training.rewards.types import Answered


def answer(text: str, tokens: int = 3, **item: Any) -> Answered:
    return Answered(prompt_ids=[1], token_ids=[5] * tokens, text=text, item=item)


@pytest.mark.parametrize(
    ("text", "solution", "reward"),
    [
        ("42", "42", 1),
        (" Paris\n", "paris", 1),
        ("It is <answer> 42 </answer>", "42", 1),
        (r"so \boxed{7}, no, \boxed{42}", r"\boxed{42}", 1),
        ("<answer>41</answer> 42", "42", 0),
        ("43", 42, 0),
    ],
)
def test_accuracy_compares_with_the_solution(text: str, solution: Any, reward: float) -> None:
    assert reward_named("accuracy", 10)([answer(text, solution=solution)]) == [reward]


def test_accuracy_does_not_apply_without_a_solution() -> None:
    assert reward_named("accuracy", 10)([answer("42"), answer("42", answer="42")]) == [None, 1]


def test_format_wants_thought_and_answer_and_nothing_else() -> None:
    right = "<think>hm</think>\n<answer>42</answer>"
    assert reward_named("format", 10)([answer(right), answer(f"{right} and"), answer("42")]) == [1, 0, 0]


def test_repetition_is_worse_the_more_comes_again() -> None:
    judged = reward_named("repetition", 10)(
        [answer("a b c d e"), answer("a b c a b c"), answer("no " * 30), answer("")]
    )
    assert judged == [0, pytest.approx(-0.25), pytest.approx(-27 / 28), 0]


def test_soft_overlong_falls_over_the_last_fifth() -> None:
    judged = reward_named("soft_overlong", 100)([answer("", count) for count in (10, 80, 90, 100)])
    assert judged == [0, 0, -0.5, -1]


def test_a_function_gets_prompts_answers_and_columns_as_trl_gives_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def mine(**given):\n    seen.append(given)\n    return [1, None]\nseen = []\n")
    judge = reward_named(f"{file}:mine", 10)
    asked = [{"role": "user", "content": "?"}]
    assert judge([answer("a", messages=asked, level=1), answer("b", prompt="?")]) == [1.0, None]
    assert judge.name == "mine"
    [given] = judge._function.__globals__["seen"]  # type: ignore[attr-defined]
    assert given["prompts"] == [asked, "?"]
    assert given["completions"] == [[{"role": "assistant", "content": "a"}], "b"]
    assert given["completion_ids"] == [[5] * 3, [5] * 3]
    assert given["level"] == [1, None]


@pytest.mark.parametrize(
    ("text", "word", "said"),
    [
        ("", "helpful", "there is no reward 'helpful'"),
        ("", "{folder}/none.py:mine", "is no Python file"),
        ("x = 1", "{folder}/mine.py:mine", "has no function 'mine'"),
        ("import nothing_of_this_name", "{folder}/mine.py:mine", "cannot be imported"),
    ],
)
def test_what_is_no_reward_is_refused(tmp_path: Path, text: str, word: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        reward_named(word.format(folder=tmp_path), 10)


def test_a_function_that_fails_says_which(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def mine(**_):\n    raise KeyError('level')\n")
    with pytest.raises(InvalidRequest, match="mine failed: KeyError: 'level'"):
        reward_named(f"{tmp_path}/mine.py:mine", 10)([answer("a")])
