"""How much the parts of an answer weigh in the loss, by the words that they begin with: the weightings for agents
(MSAgent-Bench, Li et al. 2023, arXiv:2309.00986), and those of files in ms-swift's form."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from training.data.problems import BadRow

EVEN = ("default", "last_round", "all")
"""Values of `loss_scale` with which every token that is learned weighs 1."""
UNTOLD = "which characters its tokens stand for cannot be told, and loss_scale weighs by that"
BUILT_IN = Path(__file__).with_name("loss_scales.json")


@dataclass(frozen=True)
class LossScale:
    words: Mapping[str, tuple[float, float]]
    """Words -> what they weigh, and what the text behind them weighs, up to the next of them. What is before the first
    of them weighs 1."""
    patterns: Mapping[str, float]
    """Regular expression -> what its matches weigh, in text before the first of the words."""
    questions: Mapping[str, float]
    """Words in the message that is answered -> what the whole answer weighs."""

    def weigh(self, answer: str, question: str) -> list[float]:
        """What each character of `answer` weighs."""
        whole = next((weight for words, weight in self.questions.items() if words in question), None)
        if whole is not None:
            return [whole] * len(answer)
        weights = [1.0] * len(answer)
        found = list(self._words.finditer(answer)) if self.words else []
        first = found[0].start() if found else len(answer)
        for pattern, weight in self.patterns.items():
            for match in re.finditer(pattern, answer[:first], re.DOTALL):
                weights[slice(*match.span())] = [weight] * len(match[0])
        ends = [*(match.start() for match in found[1:]), len(answer)]
        for match, end in zip(found, ends, strict=bool(found)):
            of_words, of_rest = self.words[match[0]]
            weights[match.start() : end] = [of_words] * len(match[0]) + [of_rest] * (end - match.end())
        return weights

    @cached_property
    def _words(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.words, key=len, reverse=True))))


class TokenScale:
    """A loss scale for the tokens of one model."""

    def __init__(self, scale: LossScale, tokenizer: Any) -> None:
        """Raises InvalidRequest."""
        if not tokenizer.is_fast:
            message = "the model's tokenizer does not tell which characters a token stands for: choose default"
            raise InvalidRequest(message, param="loss_scale")
        self.scale = scale
        self._tokenizer = tokenizer

    def of_tokens(self, ids: list[int], start: int, prompt: str, text: str, question: str) -> list[float]:
        """What the tokens of `text`, an answer behind `prompt`, weigh: those of `ids` from `start` on. A token weighs
        as the heaviest character in it. Raises BadRow."""
        weights = self.scale.weigh(text, question)
        spans = self._spans(ids, start, prompt, text)
        return [max(weights[first : max(end, first + 1)], default=1.0) for first, end in spans]

    def of_completion(self, ids: list[int], start: int, prompt: str, text: str) -> list[float]:
        """The same of a text that goes on from `prompt`, in a row without messages."""
        encoded = self._tokenizer(prompt + text, add_special_tokens=True, return_offsets_mapping=True)
        if encoded["input_ids"] != ids[: len(encoded["input_ids"])]:
            raise BadRow("", UNTOLD)
        weights = self.scale.weigh(text, prompt)
        spans = [(first - len(prompt), end - len(prompt)) for first, end in encoded["offset_mapping"][start:]]
        return [max(weights[max(first, 0) : max(end, first + 1, 1)], default=1.0) for first, end in spans]

    def _spans(self, ids: list[int], start: int, prompt: str, text: str) -> list[tuple[int, int]]:
        """The characters of `text` that each token stands for, as (first, end)."""
        for before, whole, tokens in ((prompt, prompt + text, ids), ("", text, ids[start:])):
            encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            if encoded["input_ids"] == tokens:
                spans = encoded["offset_mapping"][len(tokens) - (len(ids) - start) :]
                return [(max(first - len(before), 0), max(end - len(before), 0)) for first, end in spans]
        raise BadRow("", UNTOLD)


def load_loss_scale(name: str) -> LossScale | None:
    """The one of that name, or that of a JSON file; None where all that is learned weighs 1. Raises InvalidRequest."""
    if name in EVEN:
        return None
    built_in = json.loads(BUILT_IN.read_bytes())
    if name in built_in:
        return _parsed(built_in[name])
    path = Path(name).expanduser()
    try:
        return _parsed(json.loads(path.read_bytes()))
    except FileNotFoundError:
        choices = ", ".join((*EVEN, *built_in))
        raise InvalidRequest(
            f"there is no file {path.name!r}; choose {choices}, or a JSON file", param="loss_scale"
        ) from None
    except (OSError, ValueError, TypeError, re.error) as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error}", param="loss_scale") from error


def _parsed(content: Any) -> LossScale:
    """Raises ValueError, TypeError, re.error."""
    if not isinstance(content, dict):
        raise TypeError("it must be an object from words to weights")
    nested = bool(content) and content.keys() <= {"response", "query"}
    response, query = (content.get("response", {}), content.get("query", {})) if nested else (content, {})
    if not isinstance(response, dict) or not isinstance(query, dict):
        raise TypeError("response and query must be objects from words to weights")
    weights = {words: _weights(words, value, most=2) for words, value in response.items()}
    patterns = {words: value[0] for words, value in weights.items() if len(value) == 1}
    for pattern in patterns:
        re.compile(pattern)
    return LossScale(
        words={words: (value[0], value[1]) for words, value in weights.items() if len(value) == 2},
        patterns=patterns,
        questions={words: _weights(words, value, most=1)[0] for words, value in query.items()},
    )


def _weights(words: str, value: Any, *, most: int) -> Sequence[float]:
    given = value if isinstance(value, list) else [value]
    sound = all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each < 1e6 for each in given)
    if not words or not 1 <= len(given) <= most or not sound:
        form = "one or two numbers" if most == 2 else "a number"
        raise ValueError(f"the weight of {words!r} must be {form}, 0 or more")
    return [float(each) for each in given]
