"""Which files of a repository are a data set's subsets and splits, as `datasets` finds them."""

from typing import Any

import pytest

from training.hub.repository import NotFetched
from training.hub.sets import choose

SHARDS = [f"data/{split}-0000{n}-of-00002.parquet" for split in ("train_sft", "test_sft") for n in range(2)]


def chosen(files: list[str], *parts: str, configs: Any = None) -> list[tuple[str, str, list[str]]]:
    return [(each.subset, each.split, list(each.files)) for each in choose(files, configs, parts)]


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["train.jsonl", "test.jsonl"], ["train.jsonl"]),
        (
            ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00001.parquet"],
        ),
        (["train/a.csv", "dev/a.csv"], ["train/a.csv"]),
        (["my_training_set.jsonl", "my_eval_set.jsonl", "rest.jsonl"], ["my_training_set.jsonl"]),
        (["constraints.jsonl"], ["constraints.jsonl"]),
        (["README.md", "LICENSE.txt", "dataset_infos.json", ".hidden/x.jsonl", "a.jsonl"], ["a.jsonl"]),
        (["a.txt", "b.txt"], ["a.txt", "b.txt"]),
        (["a.parquet", "b.parquet", "other.csv"], ["a.parquet", "b.parquet"]),
        (["a.jsonl.gz", "b.json"], ["a.jsonl.gz", "b.json"]),
    ],
)
def test_without_a_card_names_say_what_is_for_training(files: list[str], read: list[str]) -> None:
    assert chosen(files) == [("default", "train", read)]


def test_splits_are_named_by_their_shards() -> None:
    assert chosen(SHARDS, "test_sft") == [("default", "test_sft", SHARDS[2:])]
    with pytest.raises(NotFetched, match="its splits test_sft, train_sft"):
        chosen(SHARDS)


def test_folders_are_subsets() -> None:
    files = ["en/train.jsonl", "en/test.jsonl", "de/a.jsonl", "de/b.jsonl"]
    assert chosen(files, "en") == [("en", "train", ["en/train.jsonl"])]
    assert chosen(files, "en", "test") == [("en", "test", ["en/test.jsonl"])]
    assert chosen(files, "de", "en") == [
        ("de", "train", ["de/a.jsonl", "de/b.jsonl"]),
        ("en", "train", ["en/train.jsonl"]),
    ]
    with pytest.raises(NotFetched, match="neither a subset nor a split 'fr': its subsets are default, de, en"):
        chosen(files, "fr")


CARD = [
    {
        "config_name": "sft",
        "data_files": [{"split": "train", "path": "sft/*.jsonl"}, {"split": "test", "path": ["t.jsonl"]}],
    },
    {"config_name": "dpo", "data_dir": "dpo", "default": True},
    {"config_name": "all", "data_files": "**/*.jsonl"},
    {"config_name": "deep", "data_dir": "dpo", "data_files": {"extra": "./in/**"}},
]
FILES = ["README.md", "sft/a.jsonl", "sft/b.jsonl", "t.jsonl", "dpo/train.jsonl", "dpo/test.jsonl", "dpo/in/c.jsonl"]


@pytest.mark.parametrize(
    ("parts", "read"),
    [
        ((), [("dpo", "train", ["dpo/train.jsonl"])]),
        (("sft",), [("sft", "train", ["sft/a.jsonl", "sft/b.jsonl"])]),
        (("sft", "test"), [("sft", "test", ["t.jsonl"])]),
        (("deep", "extra"), [("deep", "extra", ["dpo/in/c.jsonl"])]),
        (("all",), [("all", "train", sorted(FILES[1:]))]),
        (("sft", "dpo", "test"), [("sft", "test", ["t.jsonl"]), ("dpo", "test", ["dpo/test.jsonl"])]),
    ],
)
def test_a_card_names_subsets_and_splits(parts: tuple[str, ...], read: list[Any]) -> None:
    assert chosen(FILES, *parts, configs=CARD) == read


def test_without_a_default_a_subset_is_named() -> None:
    with pytest.raises(NotFetched, match="say which subset, behind a colon: a, b"):
        chosen(["a.jsonl"], configs=[{"config_name": "a"}, {"config_name": "b"}])
    assert chosen(["a.jsonl"], configs=[{"config_name": "a"}]) == [("a", "train", ["a.jsonl"])]


def test_what_is_not_honoured_is_refused_by_name() -> None:
    with pytest.raises(NotFetched, match="read with sep"):
        chosen(["a.csv"], configs=[{"config_name": "a", "sep": ";"}])
    with pytest.raises(NotFetched, match=r"holds no file of .*, but .arrow, .zst"):
        chosen(["a.arrow", "b.zst"])


def test_what_is_not_chosen_may_be_anything() -> None:
    configs = [
        {"config_name": "a", "default": True},
        {"config_name": "b", "sep": ";"},
        {"config_name": "c", "data_files": 7},
    ]
    assert chosen(["a.jsonl"], configs=configs) == [("a", "train", ["a.jsonl"])]


def test_a_card_has_so_many_patterns_at_most() -> None:
    with pytest.raises(NotFetched, match="1001 patterns"):
        chosen(["a.jsonl"], configs=[{"config_name": "a", "data_files": ["a.jsonl"] * 1001}])


def test_a_pattern_takes_no_time_whatever_it_is() -> None:
    pattern = "/".join(["**", "*a*a*a*a*a*b"] * 20)
    files = ["/".join(["a" * 30] * 30) + ".jsonl"]
    with pytest.raises(NotFetched):
        chosen(files, configs=[{"config_name": "a", "data_files": pattern}])
