"""Rewards that need nothing but the answer, and the row that asked: built in, or a function in a file."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from training.rewards.types import Answered, Reward

SOLUTIONS = ("solution", "answer", "ground_truth")
"""Columns that a right answer may be in."""
ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
THINK_FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
NGRAM = 3
"""Words that are compared with others in `repetition`."""


class ByName:
    """A built-in reward."""

    def __init__(self, name: str, judge: Callable[[Answered], float | None]) -> None:
        self.name = name
        self._judge = judge

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        return [self._judge(answer) for answer in answers]


def accuracy(answer: Answered) -> float | None:
    """1 where the answer is the row's solution, 0 where not; None where the row has none.

    What counts of each is what is in its last `<answer>`, its last `\\boxed{}`, or all of it; neither case nor white
    space matters.
    """
    right = next((answer.item[name] for name in SOLUTIONS if answer.item.get(name) is not None), None)
    return None if right is None else float(_final(answer.text) == _final(str(right)))


def _final(text: str) -> str:
    for pattern in (ANSWER_TAG, BOXED):
        if found := pattern.findall(text):
            text = found[-1]
            break
    return " ".join(text.casefold().split())


def think_format(answer: Answered) -> float:
    """1 where the answer is `<think>...</think><answer>...</answer>`, and nothing else, as DeepSeek-R1's."""
    return float(THINK_FORMAT.fullmatch(answer.text) is not None)


def repetition(answer: Answered) -> float:
    """0 where no three words come twice, down to -1 where they do nothing else (Yeo et al. 2025, arXiv:2502.03373)."""
    words = answer.text.lower().split()
    grams = list(zip(*(words[start:] for start in range(NGRAM)), strict=False))
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def soft_overlong(max_length: int) -> Callable[[Answered], float]:
    """0 for answers of up to four fifths of `max_length` tokens, falling to -1 at all of it (Yu et al. 2025, DAPO,
    arXiv:2503.14476, equation 13)."""
    cache = max(1, max_length // 5)

    def judge(answer: Answered) -> float:
        over = len(answer.token_ids) - (max_length - cache)
        return -min(max(0, over) / cache, 1.0)

    return judge


def built_in(max_length: int) -> Mapping[str, Callable[[Answered], float | None]]:
    """`max_length`: tokens of an answer at most."""
    long = soft_overlong(max_length)
    return {"accuracy": accuracy, "format": think_format, "repetition": repetition, "soft_overlong": long}


class ByFile:
    """A function in TRL's form: `prompts` and `completions` (texts, or messages where the row has these),
    `completion_ids` and all columns of the rows, by name -> a number or None for each."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Raises InvalidRequest for what it does not answer properly."""
        names = dict.fromkeys(name for answer in answers for name in answer.item)
        columns = {name: [answer.item.get(name) for answer in answers] for name in names}
        asked = [_asked(answer) for answer in answers]
        try:
            found = self._function(
                **columns
                | {
                    "prompts": asked,
                    "completions": [_said(each, answer) for each, answer in zip(asked, answers, strict=True)],
                    "completion_ids": [list(answer.token_ids) for answer in answers],
                }
            )
            rewards = [None if each is None else float(each) for each in found]
        except Exception as error:
            raise InvalidRequest(
                f"{self.name} failed: {type(error).__name__}: {error}", param="reward_funcs"
            ) from error
        if len(rewards) != len(answers):
            message = f"{self.name} gave {len(rewards)} rewards for {len(answers)} answers"
            raise InvalidRequest(message, param="reward_funcs")
        return rewards


def _asked(answer: Answered) -> Any:
    """What the row asks: its messages, or its prompt as text."""
    given = answer.item.get("messages") or answer.item.get("prompt")
    if isinstance(given, list) and given and answer.item.get("messages") and given[-1].get("role") == "assistant":
        given = given[:-1]  # which is the answer there
    return given if given is not None else ""


def _said(asked: Any, answer: Answered) -> Any:
    return [{"role": "assistant", "content": answer.text}] if isinstance(asked, list) else answer.text


def reward_named(word: str, max_length: int) -> Reward:
    """The reward that a word of `reward_funcs` names. Raises InvalidRequest."""
    known = built_in(max_length)
    if word in known:
        return ByName(word, known[word])
    file, _, function = word.rpartition(":")
    if not file:
        message = f"there is no reward {word!r}: choose {', '.join(known)}, or name a function as FILE.py:FUNCTION"
        raise InvalidRequest(message, param="reward_funcs")
    return ByFile(function, _loaded(Path(file).expanduser(), function))


def _loaded(file: Path, function: str) -> Callable[..., Any]:
    spec = spec_from_file_location(f"reward_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise InvalidRequest(f"{file} is no Python file", param="reward_funcs")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses in it look for themselves there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        message = f"{file} cannot be imported: {type(error).__name__}: {error}"
        raise InvalidRequest(message, param="reward_funcs") from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(found):
        raise InvalidRequest(f"{file} has no function {function!r}", param="reward_funcs")
    return found
