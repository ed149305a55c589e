"""Heads that judge texts: of a model in bfloat16, its plain forward pass, and then a head that does not round."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForSequenceClassification

from engines.checkpoint.loading import load_model
from tests.engines.pt.tiny import CONFIGS, save

IDS = torch.tensor([[3, 17, 5, 60, 9, 22]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIGS["llama"]()
    config.num_labels = 3
    return save(config, tmp_path_factory.mktemp("head"), kind=AutoModelForSequenceClassification)


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    config = AutoConfig.from_pretrained(folder)
    return load_model(str(folder), config=config, dtype=dtype, device_map="cpu", task_type="seq_cls", own_head=True)


def plain(folder: Path, dtype: torch.dtype) -> Tensor:
    """transformers' hidden states, and its head in float32."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    hidden = model.model(input_ids=IDS).last_hidden_state[:, -1]
    return linear(hidden.float(), model.score.weight.float())


def is_rounded(logits: Tensor) -> bool:
    return torch.equal(logits, logits.bfloat16().float())


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is untyped here
def test_a_model_in_bfloat16_judges_in_float32(folder: Path) -> None:
    found = loaded(folder, torch.bfloat16)(input_ids=IDS).logits
    assert found.dtype == torch.float32 and not is_rounded(found)
    torch.testing.assert_close(found, plain(folder, torch.bfloat16), atol=1e-6, rtol=1e-6)


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is untyped here
def test_autocast_rounds_no_score_and_neither_do_the_heads_that_peft_makes(folder: Path) -> None:
    for wrapped in (False, True):
        model = loaded(folder, torch.float32)
        if wrapped:
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"))
            model.get_base_model().score.modules_to_save["default"].weight.mul_(2)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(input_ids=IDS).logits
        assert found.dtype == torch.float32 and not is_rounded(found)
        torch.testing.assert_close(found / (1 + wrapped), plain(folder, torch.float32), atol=0.05, rtol=0.05)


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is untyped here
def test_in_float32_nothing_changes(folder: Path) -> None:
    expected = AutoModelForSequenceClassification.from_pretrained(folder)(input_ids=IDS).logits
    assert torch.equal(loaded(folder, torch.float32)(input_ids=IDS).logits, expected)
