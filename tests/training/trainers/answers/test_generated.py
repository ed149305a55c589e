"""Answers are compared with those that were wanted."""

from typing import Any

import pytest

from engines.echo import echo_tokenizer
from engines.errors import InvalidRequest
from training.data.encode import IGNORED
from training.params.sft import SftParams
from training.rewards.overlap import score
from training.trainers.answers.generated import check_asks, score_answers


def test_the_same_words_score_all_there_is() -> None:
    assert score("The cat sat on the mat.", "the cat sat on the mat") == pytest.approx(
        {"rouge-1": 100, "rouge-2": 100, "rouge-l": 100, "bleu-4": 100}
    )


def test_other_words_score_nothing() -> None:
    assert score("red", "blue sky") == {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0, "bleu-4": 0}


def test_rouge_counts_what_both_have() -> None:
    # Four of four words, of five that were wanted: 2 * 1 * 0.8 / 1.8.
    assert score("a b c d", "a b c d e")["rouge-1"] == pytest.approx(100 * 1.6 / 1.8)


def test_chinese_is_compared_by_character() -> None:
    assert score("我是马洛", "我是马可")["rouge-1"] == pytest.approx(75)


def test_data_without_an_answer_behind_a_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a prompt before it"):
        check_asks([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [IGNORED]}])

    check_asks([{"input_ids": [5, 6, 7], "labels": [5, IGNORED, 7], "seq_lengths": [1, 2]}])


class Generating:
    """A model that notes where it is told to stop."""

    device = "cpu"

    def generate(self, *, input_ids: Any, eos_token_id: list[int], **_: Any) -> Any:
        self.eos_token_id = eos_token_id
        return input_ids


def test_answers_end_where_they_end_when_served() -> None:
    tokenizer, model = echo_tokenizer(), Generating()
    tokenizer.eos_token = "<|endoftext|>"
    rows = [{"input_ids": [65, 66], "labels": [IGNORED, 66]}]
    score_answers(model, rows, tokenizer, SftParams())
    assert model.eos_token_id == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    score_answers(model, rows, tokenizer, SftParams(use_chat_template=False))
    assert model.eos_token_id == [tokenizer.eos_token_id]
