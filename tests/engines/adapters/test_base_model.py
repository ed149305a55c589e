"""An adapter is served on the model that it says it was trained on, by its name."""

from pathlib import Path

import pytest

from engines.adapters.base_model import check_base_model, weights_name
from engines.adapters.folder import read_adapter
from engines.errors import InvalidAdapter
from tests.adapter_folders import ECHO, write_adapter


@pytest.mark.parametrize("named", ["org/echo", "echo", "/models/Echo/", "ECHO", ""])
def test_the_last_part_of_a_base_models_name_decides(tmp_path: Path, named: str) -> None:
    spec = read_adapter(write_adapter(tmp_path, base_model_name_or_path=named), ECHO)
    check_base_model(spec, "tests/echo")


def test_an_adapter_of_another_base_model_is_refused(tmp_path: Path) -> None:
    spec = read_adapter(write_adapter(tmp_path, base_model_name_or_path="org/echo-large"), ECHO)
    with pytest.raises(InvalidAdapter, match=r"'echo-large'.*'echo'") as error:
        check_base_model(spec, "tests/echo")
    assert error.value.param == "base_model_name_or_path"


def test_an_adapter_that_names_no_base_model_fits_by_its_shapes(tmp_path: Path) -> None:
    spec = read_adapter(write_adapter(tmp_path, base_model_name_or_path=None), ECHO)
    check_base_model(spec, "tests/echo")


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("bartowski/SmolLM2-135M-Instruct-Q4_K_M.gguf", "smollm2-135m-instruct"),
        ("/models/smollm2-135m-instruct.q8_0.gguf", "smollm2-135m-instruct"),
        ("out/SmolLM2-135M-Instruct-gguf-q8_0/model.gguf", "smollm2-135m-instruct"),
        ("model.gguf", "model"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b-instruct"),
        ("Qwen/Qwen3-8B-FP8/", "qwen3-8b"),
        ("RedHatAI/Qwen3-8B-quantized.w4a16", "qwen3-8b"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "llama-3.2-1b-instruct"),
        ("out/SmolLM2-135M-Instruct-torchao-int8", "smollm2-135m-instruct"),
        ("org/int8", "int8"),
    ],
)
def test_how_weights_are_kept_is_no_part_of_their_name(model: str, weights: str) -> None:
    assert weights_name(model) == weights


@pytest.mark.parametrize("served", ["org/echo-merged-gptq-int4", "echo-large-Q8_0.gguf", "org/echo-v2", "ec"])
def test_other_weights_are_refused_however_they_are_kept(tmp_path: Path, served: str) -> None:
    spec = read_adapter(write_adapter(tmp_path, base_model_name_or_path="org/echo"), ECHO)
    with pytest.raises(InvalidAdapter, match="trained on 'echo'"):
        check_base_model(spec, served)
