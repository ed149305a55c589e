"""Texts and conversations with their class, classes or value, in the layouts of Hugging Face and ms-swift."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.tokenizers import tokenizer
from training.data import build
from training.data.encode import Encoder, TooLong
from training.data.problems import BadData, BadRow
from training.params.sft import SftParams

HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def encoded(row: dict[str, Any], limit: int | None = None, **params: Any) -> dict[str, Any]:
    (sample,) = Encoder(SftParams(**params), tokenizer(), "classes", limit).encode(row)
    return sample


TEXT = tokenizer()("Hi")["input_ids"]
ASKED = tokenizer().apply_chat_template([HI], return_dict=False)
ANSWERED = tokenizer().apply_chat_template([HI, HELLO], return_dict=False)
LAYOUTS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "Hugging Face": ({"text": "Hi", "label": 2}, TEXT),
    "a prompt": ({"prompt": "Hi", "label": 2}, TEXT),
    "ms-swift": ({"messages": [HI], "label": 2}, ASKED),
    "ms-swift, query": ({"query": "Hi", "label": 2}, ASKED),
    "ms-swift, an answer to judge": ({"messages": [HI, HELLO], "label": 2}, ANSWERED),
    "LLaMA-Factory": ({"instruction": "Hi", "input": "", "output": "Hello", "label": 2}, ANSWERED),
    "labels": ({"text": "Hi", "labels": 2}, TEXT),
    "a csv file": ({"text": "Hi", "label": "2"}, TEXT),
    "a float column": ({"text": "Hi", "label": 2.0}, TEXT),
}


@pytest.mark.parametrize(("row", "ids"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_text_is_as_the_tokenizer_has_it_with_its_class(row: dict[str, Any], ids: list[int]) -> None:
    assert encoded(row) == {"input_ids": ids, "label": 2}


def test_one_label_is_a_value_and_a_list_is_several_classes() -> None:
    for given, meant in ((0.5, 0.5), (3, 3.0), ("-1e-1", -0.1)):
        label = encoded({"text": "Hi", "label": given}, num_labels=1)["label"]
        assert (label, type(label)) == (meant, float)
    for several in ([0, 2], "[0, 2]"):
        assert encoded({"text": "Hi", "label": several}, num_labels=3)["label"] == [0, 2]
    assert encoded({"text": "Hi", "label": []})["label"] == []


WRONG: list[tuple[Any, int | None, str]] = [
    (None, None, "label: there is none"),
    ("positive", None, "label: must be a number, not 'positive'"),
    (float("nan"), None, "label: must be a number, not NaN"),
    ([0, "x"], None, "label[1]: must be a number, not 'x'"),
    ([0.5], None, "label: must be numbers of classes, not [0.5]"),
    (0.5, None, "label: 0.5 is no number of a class, which are counted from 0; num_labels 1 is what learns values"),
    (-1, None, "label: -1 is no number of a class"),
    (3, 3, "label: 3 is no number of a class, which are counted from 0; num_labels is 3"),
    ([0, 3], 3, "label: 3 is no number of a class"),
    ([0], 1, "label: is a list of classes, and num_labels is 1"),
]


@pytest.mark.parametrize(("label", "num_labels", "problem"), WRONG)
def test_what_is_no_class_is_refused(label: Any, num_labels: int | None, problem: str) -> None:
    with pytest.raises(BadRow) as caught:
        encoded({"text": "Hi", "label": label}, num_labels=num_labels)
    assert str(caught.value).startswith(problem)


def test_preferences_are_of_no_class() -> None:
    with pytest.raises(BadRow, match="two answers to compare: they are of no class"):
        encoded({"prompt": "a", "chosen": "b", "rejected": "c", "label": 1})


def test_long_texts_are_left_out_or_cut() -> None:
    row = {"text": "the quick brown fox", "label": 0}
    whole = encoded(row)["input_ids"]
    with pytest.raises(TooLong):
        encoded(row, limit=3)
    assert encoded(row, limit=3, truncation_strategy="left")["input_ids"] == whole[-3:]
    assert encoded(row, limit=3, truncation_strategy="right")["input_ids"] == whole[:3]


def save(path: Path, labels: list[Any]) -> str:
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(labels)))
    return str(path)


@pytest.mark.parametrize(
    ("labels", "num_labels", "made"),
    [([0, 1.0, "2"], None, [0, 1, 2]), ([1, 0.5, 2], 1, [1.0, 0.5, 2.0]), ([[0, 2], [], [1]], 3, [[0, 2], [], [1]])],
)
def test_a_prepared_set_has_one_kind_of_label(
    tmp_path: Path, labels: list[Any], num_labels: int | None, made: list[Any]
) -> None:
    file = save(tmp_path / "classes.jsonl", labels)
    data = build(SftParams(dataset=file, num_labels=num_labels), tokenizer(), learns="classes").train
    assert data.column_names == ["input_ids", "label"]
    assert data["label"][:] == made
    assert all(type(got) is type(want) for got, want in zip(data["label"], made, strict=True))


def test_one_class_and_several_are_not_mixed(tmp_path: Path) -> None:
    file = save(tmp_path / "classes.jsonl", [1, [0, 2], 0])
    data = build(SftParams(dataset=file), tokenizer(), learns="classes")
    assert data.train["label"][:] == [1, 0]
    assert "label: is a list in some rows, and one number in others" in data.notes[0]
    with pytest.raises(BadData, match=r"Line 2 of classes\.jsonl: label: is a list in some rows"):
        build(SftParams(dataset=file, strict=True), tokenizer(), learns="classes")


def test_numbers_of_classes_are_kept_apart_from_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    file = save(tmp_path / "classes.jsonl", [0, 1])
    for num_labels in (2, 1):
        params = SftParams(dataset=file, num_labels=num_labels, enable_cache=True)
        (first, _) = build(params, tokenizer(), learns="classes").train["label"]
        assert isinstance(first, float) == (num_labels == 1)
