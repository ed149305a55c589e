"""Samples in one row do not see one another, and padding is not seen at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Lfm2Config,
    MambaConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from engines.errors import UnsupportedModel
from tests.engines.pt.tiny import CONFIGS, SIZES
from tests.training.largest import largest_tensor
from training.data.encode import IGNORED
from training.losses.answers import answer_loss
from training.params.sft import SftParams
from training.trainers.batches.collate import Packed, Padded
from training.trainers.model import load_base_config

SAMPLES = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, 6, 7, 8]},
    {"input_ids": [9, 10, 11], "labels": [9, 10, 11]},
    {"input_ids": [12, 13, 14, 15, 16], "labels": [IGNORED, IGNORED, IGNORED, 15, 16]},
]
LONG = [{"input_ids": [*range(30, 30 + n)], "labels": [*range(30, 30 + n)]} for n in (20, 17, 25)]
"""Beyond the window of those models that have one."""


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def model(name: str, attention: str) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32, attn_implementation=attention)
    return made.eval()  # without dropout


def alone(model: Any, samples: Any = SAMPLES) -> float:
    """The summed loss of the samples, each in a batch of its own."""
    total = 0.0
    for sample in samples:
        inputs = {name: torch.tensor([values]) for name, values in sample.items()}
        total += answer_loss(model, inputs, 1).loss.item()
    return total


def rows(first: Any, second: Any, third: Any) -> list[dict[str, Any]]:
    """The samples in two rows."""
    lengths = [len(sample["input_ids"]) for sample in (first, second, third)]
    return [
        {name: first[name] + second[name] for name in first} | {"seq_lengths": lengths[:2]},
        {**third, "seq_lengths": lengths[2:]},
    ]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3", "qwen2-window", "qwen3-moe", "gpt2"])
def test_packed_samples_do_not_see_one_another(name: str, attention: str) -> None:
    tiny = model(name, attention)
    batch = Packed(pad_token_id=0)(rows(*SAMPLES))
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "position_ids", "labels"), (2, 7)
    )

    for samples in (SAMPLES, LONG):
        batch = Packed(pad_token_id=0)(rows(*samples))
        assert answer_loss(tiny, batch, 1).loss.item() == pytest.approx(alone(tiny, samples), abs=1e-4)


def test_with_more_rows_the_mask_grows_by_rows_and_not_by_their_square() -> None:
    batch = Packed(pad_token_id=0)([rows(*LONG)[0] for _ in range(32)])
    with largest_tensor() as found:
        answer_loss(model("llama", "sdpa"), batch, 1)

    assert found.numel < (32 * 37) ** 2 / 4  # as heads are, and logits


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen(attention: str, side: Literal["left", "right"]) -> None:
    tiny = model("llama", attention)
    batch = Padded(pad_token_id=0, side=side)(SAMPLES)

    assert batch["input_ids"].shape == (3, 5)
    assert answer_loss(tiny, batch, 1).loss.item() == pytest.approx(alone(tiny), abs=1e-4)


def test_flash_attention_is_told_what_it_would_find_out_of_a_single_row() -> None:
    batch = Packed(pad_token_id=0, flash=True)(rows(*SAMPLES))
    in_one_row = batch["position_ids"].reshape(1, -1)
    (q, k), (longest_q, longest_k) = prepare_fa_kwargs_from_position_ids(in_one_row)

    assert (batch["cu_seq_lens_q"].tolist(), batch["cu_seq_lens_k"].tolist()) == (q.tolist(), k.tolist())
    assert (batch["max_length_q"], batch["max_length_k"]) == (longest_q, longest_k)


def test_attention_that_goes_by_these_ends_alone_keeps_samples_apart() -> None:
    with attention_by_ends() as name:
        tiny = model("llama", name)
        batch = Packed(pad_token_id=0, flash=True)(rows(*SAMPLES))
        packed = answer_loss(tiny, batch, 1).loss.item()

    assert packed == pytest.approx(alone(model("llama", "sdpa")), abs=1e-4)


@contextmanager
def attention_by_ends() -> Iterator[str]:
    """FlashAttention's way, in torch: all rows end to end, and attention within what `cu_seq_lens_q` bounds."""

    def attend(module: Any, q: Any, k: Any, v: Any, attention_mask: Any, **named: Any) -> Any:
        assert attention_mask is None
        q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (q, k, v))  # (rows * tokens, heads, size)
        ends = named["cu_seq_lens_q"].tolist()
        attended = [
            torch.nn.functional.scaled_dot_product_attention(
                *(states[start:end].transpose(0, 1) for states in (q, k, v)), is_causal=True, enable_gqa=True
            ).transpose(0, 1)
            for start, end in pairwise(ends)
        ]
        return torch.cat(attended).view(2, -1, *q.shape[1:]), None

    name = "by_ends"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, lambda *_, **__: None)
    try:
        yield name
    finally:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name)


WITH_STATE: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "qwen3_5_text": (
        lambda: Qwen3_5TextConfig(**SIZES, layer_types=["linear_attention", "full_attention"]),
        "linear_attention",
    ),
    "qwen3_next": (lambda: Qwen3NextConfig(**SIZES), "linear_attention"),
    "lfm2": (lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), "conv"),
    "mamba": (lambda: MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2), "mamba"),
}


@pytest.mark.parametrize("name", WITH_STATE)
def test_layers_that_would_see_across_samples_are_refused_by_name_before_anything_is_loaded(
    tmp_path: Path, name: str
) -> None:
    make, word = WITH_STATE[name]
    make().save_pretrained(tmp_path)  # no weights
    params = SftParams(model=str(tmp_path))

    assert load_base_config(params).model_type == name
    with pytest.raises(UnsupportedModel, match=f"{name}.*{word}|{word}") as refused:
        load_base_config(params.model_copy(update={"packing": True}))
    assert refused.value.param == "packing"


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_attention_alone_may_be_packed(tmp_path: Path, name: str) -> None:
    CONFIGS[name]().save_pretrained(tmp_path)

    load_base_config(SftParams(model=str(tmp_path), packing=True))
