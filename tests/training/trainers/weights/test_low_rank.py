"""LoRA in one piece, beside PEFT's own layers."""

import copy
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from engines.checkpoint.quantize import keep_unpacked
from training.trainers.weights.low_rank import OnePiece, in_one_piece


class Two(nn.Module):
    """A layer with a bias, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(x)))
        return result


def adapted(**settings: Any) -> Any:
    torch.manual_seed(1)
    told = {"r": 3, "lora_alpha": 10, "target_modules": ["first", "second"], "init_lora_weights": False} | settings
    return get_peft_model(Two(), LoraConfig(**told)).train()


def seen(model: Any, rows: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """What it computes of `rows`, and all gradients."""
    rows = rows.clone().requires_grad_()
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = model(rows)
    result.float().square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return [result, rows.grad, *gradients]


def both(model: Any, rows: Tensor, **told: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What PEFT's layers compute, and those in one piece."""
    ours = copy.deepcopy(model)
    in_one_piece(ours)
    return seen(model, rows, **told), seen(ours, rows, **told)


ROWS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dora", [False, True])
def test_it_computes_what_peft_does_forwards_and_backwards(dropout: float, dora: bool) -> None:
    theirs, ours = both(adapted(lora_dropout=dropout, use_dora=dora), ROWS)
    for one, other in zip(theirs, ours, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dora", [False, True])
def test_in_bfloat16_it_is_as_near_to_float32_as_peft_is(dropout: float, dora: bool) -> None:
    model = adapted(lora_dropout=dropout, use_dora=dora)
    for layer in (model.base_model.model.first, model.base_model.model.second):
        layer.base_layer.bfloat16()
    exact = copy.deepcopy(model).float()
    theirs, ours = both(model, ROWS, autocast=True)
    for right, one, other in zip(seen(exact, ROWS), theirs, ours, strict=True):
        assert other.dtype == one.dtype
        assert (other.float() - right).norm() <= 1.2 * (one.float() - right).norm() + 0.005 * right.norm()


@pytest.mark.parametrize(
    "changed",
    [
        lambda model: model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False)),
        lambda model: model.base_model.set_adapter(["default"]),
        lambda model: model.merge_adapter(),
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.requires_grad_(True),
    ],
    ids=["a second adapter", "as it is", "merged", "switched off", "a base that learns too"],
)
def test_whatever_is_done_to_the_model_it_computes_what_peft_does(changed: Callable[[Any], object]) -> None:
    model = adapted()
    changed(model)
    with torch.no_grad():
        before = model(ROWS)
        in_one_piece(model)
        assert torch.allclose(before, model(ROWS), atol=1e-5)


def four_bits(*, dtype: torch.dtype = torch.float32, nested: bool = True, **settings: Any) -> Any:
    """Adapters beside layers of bitsandbytes' 4 bits, which compute in `dtype`."""
    torch.manual_seed(1)
    base = Two().to(dtype)
    for name in ("first", "second"):
        plain = getattr(base, name)
        layer = bitsandbytes.nn.Linear4bit(
            plain.in_features,
            plain.out_features,
            plain.bias is not None,
            dtype,
            compress_statistics=nested,
            quant_type="nf4",
        )
        layer.load_state_dict(plain.state_dict())
        setattr(base, name, layer.to("cpu"))
    told = {"r": 3, "lora_alpha": 10, "target_modules": ["first", "second"], "init_lora_weights": False} | settings
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, LoraConfig(**told)).train()
    keep_unpacked(model)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_beside_4_bits_it_computes_what_peft_does(dropout: float, dora: bool, nested: bool) -> None:
    model = four_bits(nested=nested, lora_dropout=dropout, use_dora=dora)
    theirs, ours = both(model, ROWS)
    for one, other in zip(theirs, ours, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_beside_4_bits_in_bfloat16_it_is_as_near_to_float32_as_peft_is(dora: bool) -> None:
    model = four_bits(dtype=torch.bfloat16, use_dora=dora)
    exact = adapted(use_dora=dora)
    for name in ("first", "second"):
        kept, plain = (getattr(each.base_model.model, name).base_layer for each in (model, exact))
        plain.weight.data = dequantize_4bit(kept.weight.data, kept.weight.quant_state).float()
        if plain.bias is not None:
            plain.bias.data = kept.bias.data.float()
    exact.load_state_dict({name: each for name, each in model.state_dict().items() if "lora" in name}, strict=False)
    theirs, ours = both(model, ROWS.bfloat16(), autocast=True)
    for right, one, other in zip(seen(exact, ROWS.bfloat16().float()), theirs, ours, strict=True):
        assert other.dtype == one.dtype
        assert (other.float() - right).norm() <= 1.2 * (one.float() - right).norm() + 0.005 * right.norm()


def test_beside_4_bits_that_compute_in_another_type_than_their_rows_peft_computes() -> None:
    theirs, ours = both(four_bits(dtype=torch.bfloat16), ROWS)
    assert all(torch.equal(one, other) for one, other in zip(theirs, ours, strict=True))


def test_only_beside_plain_layers_and_those_of_4_bits_it_is_computed_so() -> None:
    model = adapted()
    model.base_model.model.first.base_layer.__class__ = type("Linear8bitLt", (nn.Linear,), {})
    in_one_piece(model)
    kinds = [isinstance(getattr(model.base_model.model, name), OnePiece) for name in ("first", "second")]
    assert kinds == [False, True]


def test_of_a_base_that_learns_the_gradients_are_there() -> None:
    model = adapted()
    model.requires_grad_(True)
    theirs, ours = both(model, ROWS)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(theirs, ours, strict=True))
