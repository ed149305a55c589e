"""The code that oneDNN makes for products, as it is counted before a training."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from training.memory import kernels as counting
from training.memory.kernels import CAPACITY, Products, bytes_of_each, kernels
from training.memory.lengths import Lengths
from training.memory.peak import Peak
from training.params.sft import SftParams

VOCABULARY = 7
PRODUCTS = Products(of_texts=30, of_learned=2)


@pytest.fixture
def _a_byte_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "bytes_of_each", lambda: 1)


def halves(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16, requires_grad=True)


def test_a_product_is_counted_once_for_its_shapes_and_in_half_precision_alone() -> None:
    with Peak(VOCABULARY) as peak:
        for _ in range(2):
            halves(4, 3) @ halves(3, 5)
        halves(4, 3) @ halves(5, 3).T  # laid out otherwise
        halves(9, 3) @ halves(3, 5)
        halves(4, 3) @ halves(3, VOCABULARY)
        torch.zeros(4, 3) @ torch.zeros(3, 5)

    assert peak.seen.products == Products(of_texts=3, of_learned=1)


def test_attention_is_two_products_and_five_more_for_its_gradients() -> None:
    queries, keys, values = (halves(1, 2, 16, 8) for _ in range(3))
    with Peak(VOCABULARY) as peak:
        attended = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        forward = peak.seen.products.of_texts
        attended.sum().backward()

    assert (forward, peak.seen.products.of_texts) == (2, 7)


@pytest.mark.usefixtures("_a_byte_each")
@pytest.mark.parametrize(
    ("lengths", "params", "made"),
    [
        ({}, {}, 32),
        ({"different": 4}, {}, 4 * 30 + 2),
        ({"different": 4, "different_learned": 5}, {}, 4 * 30 + 5 * 2),
        ({"different": 4, "different_learned": 5}, {"max_steps": 3}, 3 * 32),
        ({"different": 4}, {"max_steps": 1, "gradient_accumulation_steps": 2}, 2 * 30 + 2),
        ({"different_learned": 2}, {"per_device_train_batch_size": 2, "max_steps": 20}, 30 + 20 * 2),  # sums of them
        ({"different": 40}, {}, CAPACITY),
    ],
)
def test_each_length_of_a_batch_has_its_own(lengths: dict[str, int], params: dict[str, Any], made: int) -> None:
    given: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1} | params

    assert kernels(PRODUCTS, Lengths(24, 10, 10, rows=100, **lengths), SftParams(**given)) == made


def test_without_products_in_half_precision_there_are_none() -> None:
    assert kernels(Products(), Lengths(24, 10, 10), SftParams()) == 0


def test_what_one_takes_is_measured_here() -> None:
    assert 0 <= bytes_of_each() < 4 << 20
