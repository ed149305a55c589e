"""The token that a model with a head pads with, and the attention that one learns by."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engines.errors import UnsupportedModel
from tests.training.jobs import make_model
from training.params.sft import SftParams
from training.trainers.model import load_base_config, load_for_training, load_tokenizer_for


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


def test_scores_that_are_capped_where_a_model_is_served_are_where_it_learns(tmp_path: Path) -> None:
    base = make_model(tmp_path, "gemma2")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attn_logit_softcapping": 0.02}))
    params, ids = SftParams(model=str(base)), torch.arange(40).view(2, 20)
    found = load_for_training(params, load_base_config(params), torch.float32)(input_ids=ids).logits
    capped, plain = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=name)(input_ids=ids).logits
        for name in ("eager", "sdpa")
    )
    assert torch.equal(found, capped)
    assert not torch.allclose(capped, plain, atol=1e-3), "a cap that changes nothing shows nothing"


def test_attention_without_a_cap_is_refused_by_a_model_whose_scores_have_one(tmp_path: Path) -> None:
    params = SftParams(model=str(make_model(tmp_path, "gemma2")), attn_impl="sdpa")
    with pytest.raises(UnsupportedModel, match="sdpa does not do: choose eager or flash_attn") as caught:
        load_base_config(params)
    assert caught.value.param == "attn_impl"
