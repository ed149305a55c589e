"""`python -m training.validate` says what is wrong with the data and where, quickly and without torch."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.data import check as data
from training.data.samples import Learns
from training.folder import JobFolder, Validation
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.params.task import MergeTask, SftTask
from training.validate import main

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LINE = json.dumps(GOOD) + "\n"


def check(params: SftParams, learns: Learns = "answers") -> Validation:
    return data.check(params, learns=learns)


def file(folder: Path, content: str | bytes, name: str = "a.jsonl") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


BAD: dict[str, tuple[str | bytes, str]] = {
    "wrong JSON": (LINE + "{", "Line 2 of a.jsonl: this is not valid JSON"),
    "no answer": (
        LINE + LINE + json.dumps({"messages": GOOD["messages"][:1]}),
        "Line 3 of a.jsonl: messages: there is no message of the assistant to learn from",
    ),
    "empty": ("", "{} holds no rows"),
    "blank": ("\n \n", "{} holds no rows"),
    "wrong encoding": (LINE.encode() + b'{"messages": "\xe4"}', "Line 2 of a.jsonl: byte 15 (0xe4) is not UTF-8"),
    "binary": (b"\x7fELF\x02\x01\x01\0\0", "Line 1 of a.jsonl: there are zero bytes"),
    "mixed shapes": (
        LINE + '{"query": "Hi", "response": "Hello"}',
        "Line 2 of a.jsonl: this row is of the shape 'query/response', those before it are of the shape 'messages'",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_refused_with_line_and_field(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = file(tmp_path, content)
    error = check(SftParams(dataset=path, strict=True)).error
    assert error is not None
    assert error.message.startswith(message.format(path))
    assert (error.code, error.param) == ("invalid_training_file", "dataset")


def test_a_line_of_a_gigabyte_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, LINE)
    with open(path, "r+b") as big:
        big.truncate(1 << 30)  # a hole: it takes no room
    error = check(SftParams(dataset=path, strict=True)).error
    assert error is not None
    assert error.message.startswith("Line 2 of a.jsonl: the line is longer than 16 MiB")


def test_validation_data_is_told_apart(tmp_path: Path) -> None:
    error = check(SftParams(dataset=file(tmp_path, LINE), val_dataset=file(tmp_path, "", "v.jsonl"))).error
    assert error is not None
    assert error.param == "val_dataset"


def test_without_strict_only_a_file_without_a_usable_row_fails(tmp_path: Path) -> None:
    path = file(tmp_path, LINE + "{\n" + LINE)
    assert check(SftParams(dataset=[path, f"{path}#7"])).rows == 9
    error = check(SftParams(dataset=file(tmp_path, "{\n"))).error
    assert error is not None
    assert "can be used. Line 1 of a.jsonl: this is not valid JSON" in error.message


def test_what_is_to_be_learned_decides_what_a_row_must_hold(tmp_path: Path) -> None:
    error = check(RlhfParams(rlhf_type="dpo", dataset=file(tmp_path, LINE), strict=True), "pairs").error
    assert error is not None
    assert error.message == "Line 1 of a.jsonl: there is no rejected answer to compare with"
    kto = file(tmp_path, json.dumps({**GOOD, "label": True}))
    assert check(RlhfParams(rlhf_type="kto", dataset=kto, strict=True), "labels").rows == 1


def test_no_data_is_told() -> None:
    error = check(SftParams()).error
    assert error is not None
    assert error.message.startswith("there is no data to train on")


def test_a_name_that_no_file_can_have_is_told() -> None:
    error = check(SftParams(dataset="x" * 5000 + ".jsonl")).error
    assert error is not None
    assert error.param == "dataset"


def test_weights_are_counted_in_the_headers(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3]}, "b": {"dtype": "F32", "shape": [4]}}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    path = file(tmp_path, LINE)
    assert check(SftParams(dataset=path, model=str(tmp_path))).model_parameters == 10
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert check(SftParams(dataset=path, model=str(tmp_path))).model_parameters is None


def test_the_command_writes_what_it_found_and_loads_no_torch(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    params: dict[str, Any] = {"dataset": file(tmp_path, LINE * 3)}
    folder.write_task(SftTask.model_validate({"task": "sft", "params": params}))
    code = (
        "import runpy, sys; sys.argv = ['validate', sys.argv[1]]; runpy.run_module('training.validate', "
        "run_name='__main__'); assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    found = folder.read_validation()
    assert found is not None
    assert (found.rows, found.error) == (3, None)


def test_a_task_without_data_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    main(folder)
    found = folder.read_validation()
    assert found is not None
    assert found.error is not None
    folder.write_task(MergeTask.model_validate({"task": "merge", "params": {}}))
    main(folder)
    found = folder.read_validation()
    assert found is not None
    assert found.error is None


def test_an_evaluation_that_the_data_leaves_nothing_for_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, LINE * 20)
    asked = SftParams(dataset=path, eval_steps=5)

    error = check(asked).error
    assert error is not None and error.param == "eval_steps"
    assert error.message.startswith("split_dataset_ratio 0.01 sets none of 20 rows aside")
    assert check(asked.model_copy(update={"split_dataset_ratio": 0.1})).error is None
    assert check(SftParams(dataset=path)).error is None, "nobody asked for an evaluation"
