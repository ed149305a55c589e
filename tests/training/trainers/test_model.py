"""The token that a model with a head pads with."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.training.jobs import make_model
from training.params.sft import SftParams
from training.trainers.model import load_tokenizer_for


@pytest.mark.parametrize(
    ("marks", "pads_with"),
    [
        ({"pad_token": "<pad>", "unk_token": "<unk>"}, "<pad>"),
        ({"pad_token": "<eos>", "unk_token": "<unk>"}, "<unk>"),
        ({"pad_token": "<eos>", "unk_token": "<eos>"}, "<bos>"),
        ({"pad_token": "<eos>", "extra_special_tokens": ["<mark>"]}, "<mark>"),
        ({"pad_token": "<eos>", "bos_token": "<eos>"}, None),
    ],
)
def test_a_model_with_a_head_pads_with_no_token_that_ends_texts(
    tmp_path: Path, marks: dict[str, Any], pads_with: str | None
) -> None:
    base = make_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens(marks)
    tokenizer.save_pretrained(base)
    params = SftParams(model=str(base), task_type="seq_cls")
    found = load_tokenizer_for(params, learns="classes")
    assert found.pad_token != found.eos_token
    assert pads_with in (None, found.pad_token)
    causal = load_tokenizer_for(SftParams(model=str(base)), learns="answers")
    assert causal.pad_token == marks["pad_token"]
