"""Data sets are found where they are named, read, drawn from, split, and given to trainers."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from engines.errors import InvalidRequest
from tests.training.data.tokenizers import THINKS_LAST, tokenizer
from training.data import Datasets, build
from training.data.problems import BadData
from training.data.samples import Learns
from training.params.sft import PtParams, SftParams


def question(number: int) -> dict[str, Any]:
    return {"query": f"question {number}", "response": f"answer {number}"}


def save(path: Path, rows: Iterable[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def ten(tmp_path: Path) -> str:
    return save(tmp_path / "ten.jsonl", map(question, range(10)))


def built(learns: Learns = "answers", **params: Any) -> Datasets:
    return build(SftParams(**params), tokenizer(), learns=learns)


def batched(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def texts(data: Any) -> list[str]:
    """The answers, without their ends."""
    return [
        tokenizer().decode([label for label in row["labels"] if label >= 0]).removesuffix("<|im_end|>\n")
        for row in data
    ]


def test_several_sets_follow_one_another(tmp_path: Path, ten: str) -> None:
    other = save(tmp_path / "other.jsonl", [question(77)])
    data = built(dataset=[ten, other])
    assert texts(data.train) == [*(f"answer {i}" for i in range(10)), "answer 77"]
    assert data.evaluation is None, "a hundredth of eleven rows is none"
    assert data.train.column_names == ["input_ids", "labels"]


def test_so_many_rows_are_drawn_the_same_ones_each_time(ten: str) -> None:
    drawn = [texts(built(dataset=f"{ten}#4", data_seed=seed).train) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 4
    more = texts(built(dataset=f"{ten}#25").train)
    assert len(more) == 25
    assert all(more.count(f"answer {i}") in (2, 3) for i in range(10))


def test_a_part_is_set_aside_for_validation(ten: str) -> None:
    data = built(dataset=ten, split_dataset_ratio=0.2)
    assert data.evaluation is not None
    assert len(data.evaluation) == 2
    assert sorted(texts(data.train) + texts(data.evaluation)) == [f"answer {i}" for i in range(10)]
    with pytest.raises(InvalidRequest, match="no row to train on"):
        built(dataset=ten, split_dataset_ratio=1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_row_that_comes_several_times_is_trained_on_or_set_aside(tmp_path: Path, ten: str, interleaved: bool) -> None:
    sets: dict[str, Any] = {"dataset": f"{ten}#30"}
    if interleaved:
        other = save(tmp_path / "other.jsonl", [question(77)])
        sets = {"dataset": [ten, other], "interleave_prob": [0.5, 0.5], "stopping_strategy": "all_exhausted"}
    data = built(**sets, split_dataset_ratio=0.1)
    learned, held = texts(data.train), texts(data.evaluation)
    assert len({*learned, *held}) < len([*learned, *held])
    assert held and set(learned).isdisjoint(held)


def test_a_row_that_is_all_there_is_cannot_be_both(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="also set aside"):
        built(dataset=f"{save(tmp_path / 'one.jsonl', [question(1)])}#4", split_dataset_ratio=0.5)


def test_validation_data_of_its_own_is_taken_whole(tmp_path: Path, ten: str) -> None:
    data = built(dataset=ten, val_dataset=save(tmp_path / "v.jsonl", [question(5)]), split_dataset_ratio=0.5)
    assert len(data.train) == 10
    assert texts(data.evaluation) == ["answer 5"]


def test_of_a_folder_the_training_files_are_read_and_of_a_subset_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save(folder / "en" / "train.jsonl", [question(1)])
    save(folder / "en" / "test.jsonl", [question(2)])
    save(folder / "de.jsonl", [question(3)])
    (folder / "README.md").write_text("# a set")
    assert texts(built(dataset=str(folder)).train) == ["answer 1"]
    assert texts(built(dataset=f"{folder}:en").train) == ["answer 1"]
    assert texts(built(dataset=f"{folder}:de#1").train) == ["answer 3"]
    with pytest.raises(BadData, match="the subset 'fr' of"):
        built(dataset=f"{folder}:fr")


@pytest.mark.parametrize("name", ["missing.jsonl", "/no/where", "./here"])
def test_what_is_not_there_is_told(name: str) -> None:
    with pytest.raises(BadData, match="there is no file") as caught:
        built(dataset=name)
    assert caught.value.param == "dataset"


def test_a_set_of_the_hub_is_read_through_datasets(ten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*place: Any, **settings: Any) -> Any:
        asked.append((place, settings))
        return datasets.Dataset.from_list([question(1)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda id, token: ["en", "de"])
    data = built(dataset="org/set:en", download_mode="force_redownload", hub_token="secret")
    assert texts(data.train) == ["answer 1"]
    settings = {"split": "train", "streaming": False, "download_mode": "force_redownload", "token": "secret"}
    assert asked == [(("org/set", "en"), settings)]


def test_subsets_and_splits_of_the_hub_are_told_apart_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(id: str, subset: str | None, *, split: str, **_: Any) -> Any:
        return datasets.Dataset.from_list([{"query": "Which?", "response": f"{subset} {split}"}])

    def splits(id: str, subset: str | None, token: Any) -> list[str]:
        return ["train", "train_sft", "test_sft"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda id, token: ["en", "de"])
    monkeypatch.setattr(datasets, "get_dataset_split_names", splits)
    for name, read in (
        ("org/set", ["None train"]),
        ("org/set:de", ["de train"]),
        ("org/set:train_sft", ["None train_sft"]),
        ("org/set:en/de", ["en train", "de train"]),
        ("org/set:en/test_sft", ["en test_sft"]),
        ("org/set:en/de/train_sft/test_sft", ["en train_sft", "en test_sft", "de train_sft", "de test_sft"]),
    ):
        assert texts(built(dataset=name).train) == read, name
    with pytest.raises(BadData, match="neither a subset nor a split 'fr': its subsets are en, de, its splits train"):
        built(dataset="org/set:fr")


def test_nulls_that_a_table_adds_to_objects_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    called = {"id": "a", "type": "function", "function": {"name": "now", "arguments": {"zone": "CET"}}}
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in (called, called | {"function": {"name": "at", "arguments": {"place": "Rome"}}})
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    assert "place" not in texts(built(dataset="org/set").train)[0]


def test_the_files_of_a_folder_are_found_by_the_names_that_the_hub_gives_them(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save(folder / "data" / "train_sft-00000-of-00002.jsonl", [question(1)])
    save(folder / "data" / "train_sft-00001-of-00002.jsonl", [question(2)])
    save(folder / "data" / "train_gen-00000-of-00001.jsonl", [question(3)])
    (folder / "LICENSE.txt").write_text("Take it.")
    assert texts(built(dataset=f"{folder}:train_sft").train) == ["answer 1", "answer 2"]
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("Once\n\nupon\n")
    texts_of = build(PtParams(dataset=str(tmp_path / "books")), tokenizer(), learns="text").train
    assert texts(texts_of) == ["<s>Once</s>", "<s>upon</s>"]


def test_long_texts_are_split_in_pt(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [{"text": "abcdefghij" * 5}])

    def pieces(**params: Any) -> list[list[int]]:
        data = build(PtParams(dataset=path, max_length=20, **params), tokenizer(), learns="text")
        return [list(ids) for ids in data.train["input_ids"]]

    whole = tokenizer().encode("abcdefghij" * 5 + "</s>")
    found = pieces()
    assert [token for piece in found for token in piece] == whole
    assert max(map(len, found)) == 20
    assert pieces(truncation_strategy="right") == [whole[:20]]
    with pytest.raises(BadData, match="no row can be used"):
        pieces(truncation_strategy="delete")
    with pytest.raises(InvalidRequest, match="only what pt trains can be split"):
        built(dataset=path, truncation_strategy="split")


def test_rows_that_cannot_be_used_are_left_out_and_told_or_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [question(1), {"query": "alone"}, question(2)])
    data = built(dataset=path)
    assert texts(data.train) == ["answer 1", "answer 2"]
    assert data.notes[0].startswith(f"1 rows of {path} were left out, the first because: Line 2 of a.jsonl:")
    with pytest.raises(BadData, match=r"^Line 2 of a\.jsonl: the fields 'query' are of no known shape"):
        built(dataset=path, strict=True)


def test_rows_that_are_too_long_are_left_out_however_strict(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [question(1), {"query": "q" * 200, "response": "a"}])
    data = built(dataset=path, strict=True, max_length=60)
    assert texts(data.train) == ["answer 1"]
    assert "Line 2 of a.jsonl: it has" in data.notes[0]
    with pytest.raises(BadData, match="no row can be used"):
        built(dataset=path, max_length=3)


def test_several_processes_make_the_same(ten: str) -> None:
    assert texts(built(dataset=ten, dataset_num_proc=2).train) == texts(built(dataset=ten).train)


def test_packed_rows(ten: str) -> None:
    alone, together = built(dataset=ten).train, built(dataset=ten, packing=True, max_length=100).train
    assert len(together) < len(alone)
    assert max(len(row["input_ids"]) for row in together) <= 100
    assert sorted(length for row in together for length in row["seq_lengths"]) == sorted(map(len, alone["input_ids"]))


def test_lazy_rows_are_the_same_and_pass_over_what_is_too_long(tmp_path: Path) -> None:
    rows = [question(1), {"query": "q" * 200, "response": "a"}, question(3)]
    data = built(dataset=save(tmp_path / "a.jsonl", rows), lazy_tokenize=True, max_length=60)
    assert len(data.train) == 3
    assert texts(data.train) == ["answer 1", "answer 3", "answer 3"]


def numbers(samples: Iterable[Any]) -> list[int]:
    """Those of the answers."""
    return [int(text.removeprefix("answer ")) for text in texts(samples)]


def test_a_stream_gives_all_rows_again_and_again_in_another_order(ten: str) -> None:
    data = built(dataset=ten, streaming=True, val_dataset=f"{ten}#3")
    for _ in range(2):
        first, second = batched(numbers(islice(data.train, 20)), 10)
        assert sorted(first) == sorted(second) == list(range(10))
        assert first != second
    assert numbers(data.evaluation) == [0, 1, 2]
    packed = built(dataset=ten, streaming=True, packing=True, max_length=100).train
    assert sum(len(row["seq_lengths"]) for row in packed.one_pass()) == 10


def test_streams_of_several_sets_are_read_in_turn(tmp_path: Path, ten: str) -> None:
    other = save(tmp_path / "other.jsonl", map(question, (70, 71)))
    train = built(dataset=[f"{ten}#4", other], streaming=True).train
    assert numbers(train.one_pass()) == [0, 70, 1, 71, 2, 3]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_drawn_from_several_sets_by_their_probabilities(tmp_path: Path, streaming: bool) -> None:
    low, high = (save(tmp_path / f"{n}.jsonl", map(question, range(n, n + 100))) for n in (0, 500))

    def drawn(**params: Any) -> list[int]:
        train = built(dataset=[low, high], streaming=streaming, split_dataset_ratio=0.0, **params).train
        return numbers(train.one_pass() if streaming else train)

    found = drawn(interleave_prob=(0.1, 0.9))
    few = [number for number in found if number < 500]
    assert 100 <= len(found) < 135
    assert 0 < len(few) < 35
    assert few == list(range(len(few)))
    whole = drawn(interleave_prob=(0.1, 0.9), stopping_strategy="all_exhausted")
    assert {number for number in whole if number < 500} == set(range(100))
    assert sum(number >= 500 for number in whole) > 400, "the set that is exhausted begins again"


def shares(monkeypatch: pytest.MonkeyPatch, dataset: str, count: int, **params: Any) -> list[list[int]]:
    """The numbers that each of so many processes gets in one pass."""
    found = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        found.append(numbers(built(dataset=dataset, streaming=True, **params).train.one_pass()))
    return found


def test_processes_share_a_stream_without_repeats(ten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shares(monkeypatch, ten, 3)
    assert sorted(chain(*found)) == list(range(10))
    assert [len(each) for each in found] == [4, 3, 3]


def test_loaders_of_a_process_share_its_part_of_a_stream(ten: str) -> None:
    train = built(dataset=ten, streaming=True).train
    loader = DataLoader(train, batch_size=None, num_workers=2)
    assert sorted(numbers(islice(loader, 10))) == list(range(10))
    more_loaders_than_rows = DataLoader(built(dataset=f"{ten}#1", streaming=True).train, batch_size=None, num_workers=2)
    assert numbers(islice(more_loaders_than_rows, 3)) == [0, 0, 0]


def test_fewer_rows_than_processes_are_refused(ten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BadData, match="fewer rows than processes"):
        next(iter(built(dataset=f"{ten}#2", streaming=True).train))


def test_rows_that_a_stream_drops_are_told_once(tmp_path: Path) -> None:
    rows = [question(1), {"query": "alone"}, {"query": "q" * 200, "response": "a"}, question(2)]
    path = save(tmp_path / "a.jsonl", rows)
    data = built(dataset=path, streaming=True, max_length=60)
    for loaders in (0, 2):
        assert len(list(islice(DataLoader(data.train, batch_size=None, num_workers=loaders), 8))) == 8
        (note,) = data.notes_later()
        assert f"2 rows of {path} were left out, the first because: Line " in note
        data = built(dataset=path, streaming=True, max_length=60)
    with pytest.raises(BadData, match=r"Line 2 of a\.jsonl"):
        list(islice(built(dataset=path, streaming=True, strict=True).train, 4))


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"streaming": True, "split_dataset_ratio": 0.1}, "split_dataset_ratio"),
        ({"streaming": True, "lazy_tokenize": True}, "lazy_tokenize"),
        ({"packing": True, "lazy_tokenize": True}, "lazy_tokenize"),
        ({"packing": True}, "max_length"),
        ({"enable_cache": True, "streaming": True}, "enable_cache"),
        ({"custom_dataset_info": "missing.json"}, "custom_dataset_info"),
        ({"model_name": "A"}, "model_author"),
    ],
)
def test_what_contradicts_itself_is_refused(ten: str, params: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        built(dataset=ten, **params)
    assert caught.value.param == param


def test_prepared_data_is_used_again_until_something_changes(
    tmp_path: Path, ten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    settings: dict[str, Any] = {"dataset": ten, "enable_cache": True, "split_dataset_ratio": 0.2}
    first, again = built(**settings), built(**settings, dataset_num_proc=2)
    kept = list((tmp_path / "cache" / "data").glob("[!.]*"))
    assert len(kept) == 1
    assert texts(again.train) == texts(first.train) == texts(built(**settings | {"enable_cache": False}).train)
    assert texts(again.evaluation) == texts(first.evaluation)
    built(**settings, system="Be kind.")
    save(Path(ten), [question(1)])
    assert texts(built(**settings).train) == ["answer 1"]
    assert len(list((tmp_path / "cache" / "data").glob("[!.]*"))) == 3


def test_self_cognition_says_the_names_it_is_given() -> None:
    names: dict[str, Any] = {"model_name": ["小明", "Ada"], "model_author": ["某组织", "Org"]}
    answers = texts(built(dataset="self-cognition", **names).train)
    assert "My name is Ada." in answers
    assert not any("{{" in answer for answer in answers)
    chinese = texts(built(dataset="self-cognition:zh#50", **names).train)
    assert len(chinese) == 50
    assert all("小明" in answer or "某组织" in answer for answer in chinese)
    with pytest.raises(BadData, match="has the subsets en and zh, not 'fr'"):
        built(dataset="self-cognition:fr", **names)
    with pytest.raises(InvalidRequest) as caught:
        built(dataset="self-cognition:en#5")
    assert caught.value.param == "model_name"


@pytest.mark.parametrize("beside", [{}, {"response": "Bye", "query": "No"}], ids=["alone", "beside others so called"])
def test_a_described_set_has_its_columns_renamed(tmp_path: Path, beside: dict[str, str]) -> None:
    save(tmp_path / "data" / "mine.jsonl", [{"q": "Hi", "a": "Hello", **beside}])
    info = tmp_path / "info.json"
    entry = {"dataset_name": "mine", "dataset_path": "data/mine.jsonl", "columns": {"q": "query", "a": "response"}}
    info.write_text(json.dumps([entry]))
    assert texts(built(dataset="mine#1", custom_dataset_info=str(info)).train) == ["Hello"]
    info.write_text(json.dumps([{"ms_dataset_id": "x"}]))
    with pytest.raises(InvalidRequest, match="ms_dataset_id cannot be read"):
        built(dataset="mine", custom_dataset_info=str(info))


LLAMAFACTORY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpaca": ({"columns": {"prompt": "q", "response": "a"}}, {"q": "Hi", "a": "Hello"}),
    "columns that are not named": (
        {"columns": {"prompt": "q", "response": "a"}},
        {"q": "Hi", "a": "Hello", "instruction": "No", "input": "No", "output": "Bye", "messages": []},
    ),
    "alpaca, as its columns are called": ({}, {"instruction": "Hi", "input": "", "output": "Hello"}),
    "sharegpt": (
        {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": {"role_tag": "role", "user_tag": "user"}},
        {"talk": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    ),
    "a system message": (
        {"columns": {"prompt": "q", "query": "more", "response": "a", "system": "s", "history": "h"}},
        {"q": "Hi", "more": "there", "a": "Hello", "s": "Be kind.", "h": [["a", "b"]]},
    ),
}


@pytest.mark.parametrize(("entry", "row"), LLAMAFACTORY.values(), ids=LLAMAFACTORY)
def test_a_set_that_llamafactorys_file_describes_is_read(
    tmp_path: Path, entry: dict[str, Any], row: dict[str, Any]
) -> None:
    save(tmp_path / "mine.jsonl", [row])
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"mine": {"file_name": "mine.jsonl", **entry}, "other": {"script_url": "x"}}))
    data = built(dataset="mine", custom_dataset_info=str(info), loss_scale="last_round").train
    assert texts(data) == ["Hello"]
    text = tokenizer().decode(data[0]["input_ids"])
    assert "No" not in text
    if "s" in row:
        assert "Be kind." in text and "Hi\nthere" in text and text.index("b<|im_end|>") < text.index("Hi")


def test_llamafactorys_preferences_and_judged_answers_are_read(tmp_path: Path) -> None:
    save(tmp_path / "mine.jsonl", [{"q": "Hi", "good": "Hello", "bad": "What?"}] * 3)
    ranking = {"ranking": True, "num_samples": 2, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}
    judged = {"columns": {"prompt": "q", "response": "good", "kto_tag": "liked"}}
    save(tmp_path / "judged.jsonl", [{"q": "Hi", "good": "Hello", "liked": False}])
    info = tmp_path / "dataset_info.json"
    files = {"pairs": {"file_name": "mine.jsonl", **ranking}, "judged": {"file_name": "judged.jsonl", **judged}}
    info.write_text(json.dumps(files))
    pairs = built("pairs", dataset="pairs", custom_dataset_info=str(info)).train
    assert [tokenizer().decode(row["rejected_ids"]) for row in pairs] == ["What?<|im_end|>\n"] * 2
    assert built("labels", dataset="judged", custom_dataset_info=str(info)).train["label"][:] == [False]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"script_url": "x"}, "script_url cannot be read"),
        ({"columns": {}}, "must say file_name or hf_hub_url"),
        ({"file_name": "mine.jsonl", "columns": {"picture": "p"}}, "picture cannot be read"),
        ({"file_name": "mine.jsonl", "columns": ["a"]}, "columns of mine must be an object"),
        ({"file_name": "mine.jsonl", "tags": {"role_tag": "who"}}, "role_tag 'who' cannot be read"),
        ({"file_name": "mine.jsonl", "tags": {"user_tag": "gpt"}}, "user_tag 'gpt' cannot be read"),
        ({"file_name": "mine.jsonl", "num_samples": "all"}, "num_samples a number"),
    ],
)
def test_a_description_of_llamafactorys_that_cannot_be_read_is_refused_when_it_is_named(
    tmp_path: Path, entry: dict[str, Any], problem: str
) -> None:
    save(tmp_path / "mine.jsonl", [question(1)])
    save(tmp_path / "other.jsonl", [question(2)])
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"mine": entry, "other": {"file_name": "other.jsonl"}}))
    assert texts(built(dataset="other", custom_dataset_info=str(info)).train) == ["answer 2"]
    with pytest.raises(InvalidRequest, match=problem) as caught:
        built(dataset="mine", custom_dataset_info=str(info))
    assert caught.value.param == "custom_dataset_info"


def test_a_registered_set_is_what_its_function_returns(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("DATASETS = {'mine': lambda: [{'query': 'Hi', 'response': 'Hello'}]}")
    assert texts(built(dataset="mine", custom_register_path=str(plugin)).train) == ["Hello"]
    plugin.write_text("x = 1 / 0")
    with pytest.raises(InvalidRequest, match="ZeroDivisionError"):
        built(dataset="mine", custom_register_path=str(plugin))


def test_what_the_data_keeps_from_being_used_is_told(tmp_path: Path, ten: str) -> None:
    plain = save(tmp_path / "plain.jsonl", [{"text": "Hello"}])

    assert "system is not used" in built(dataset=plain, system="Be brief.").notes[0]
    assert built(dataset=[plain, ten], system="Be brief.").notes == ()
    assert "sets none of 10 rows aside" in built(dataset=ten, eval_steps=3).notes[0]
    assert built(dataset=ten, eval_steps=3, split_dataset_ratio=0.2).notes == ()


def test_what_the_template_has_no_place_for_is_told_with_the_line(tmp_path: Path) -> None:
    def row(**more: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", **more}]}

    path = save(tmp_path / "a.jsonl", [row(id=7), row(name="Ada"), row(name="Bob")])
    (note,) = built(dataset=path).notes
    assert "'name', the first in line 2 of a.jsonl: the chat template has no place for it" in note


def test_what_is_learned_in_another_way_than_it_stands_there_is_told_once(tmp_path: Path) -> None:
    def row(*answers: str, **more: Any) -> dict[str, Any]:
        turns = [
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text, **more}] for text in answers
        ]
        return {"messages": [message for both in turns for message in both]}

    path = save(tmp_path / "a.jsonl", [row("A", reasoning_content="So."), row("B"), row("C", "D"), row("E", "F", "G")])
    rows: dict[str, Any] = {"dataset": path, "val_dataset": path}
    (note,) = built(**rows).notes
    assert note.startswith("1 rows have reasoning, and the chat template writes none: it is learned in <think> tags")
    apart, less = built(**rows, chat_template=THINKS_LAST).notes[:2]
    assert apart.startswith("2 conversations became 5 samples: the chat template writes an answer in another way")
    assert less.startswith("3 rows have answers without reasoning")
    for way in ({"lazy_tokenize": True}, {"streaming": True, "max_steps": 1}):
        notes = built(**rows, **way, chat_template=THINKS_LAST).notes
        assert any(note.startswith("of the first 64 rows: 2 conversations become a sample for each") for note in notes)
    thinks = tokenizer("{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}<|im_end|>\n{% endfor %}")
    assert build(SftParams(dataset=path), thinks, learns="answers").notes == ()
