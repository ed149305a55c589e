"""Losses over pairs of answers: TRL's, and their gradients, of the same log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from training.losses.pairs import LOSSES, Pairs, Weights
from training.methods import METHODS
from training.methods.cpo import Cpo
from training.methods.dpo import Dpo
from training.methods.pairs import FromPairs

LENGTHS = torch.tensor([[3, 5], [4, 2], [6, 6], [1, 4]])
"""Tokens of each pair's answers."""
STRIDE = 8
MASK = torch.arange(STRIDE) < LENGTHS[..., None]
DPO, CPO = Dpo(), Cpo()


@pytest.fixture
def per_token() -> Tensor:
    """Log-probabilities of the model, (pairs, 2, tokens)."""
    torch.manual_seed(0)
    return (-3 * torch.rand(*MASK.shape)).requires_grad_()


@pytest.fixture
def reference() -> Tensor:
    """Of the reference model, summed: (pairs, 2)."""
    torch.manual_seed(1)
    return -2 * torch.rand(LENGTHS.shape) * LENGTHS


def ours(name: str, per_token: Tensor, reference: Tensor, **weights: float) -> list[Tensor]:
    """The loss, and its gradient."""
    pairs = Pairs((per_token * MASK).sum(-1), reference, LENGTHS.float())
    return with_gradient(LOSSES[name](pairs, Weights(**weights)).mean(), per_token)


def with_gradient(loss: Tensor, per_token: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, per_token)]


def dpo_of_trl(name: str, per_token: Tensor, reference: Tensor, beta: float, label_smoothing: float) -> list[Tensor]:
    """TRL's, with a model that says what it is told to: chosen answers first, a prompt of one token before each."""
    said = (per_token * MASK).transpose(0, 1).flatten(0, 1)
    mask = MASK.transpose(0, 1).flatten(0, 1)
    nothing = torch.zeros_like(said)
    outputs = SimpleNamespace(log_probs=said, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=Accelerator(cpu=True), beta=beta, loss_types=[name],
        loss_weights=[1.0], label_smoothing=label_smoothing, ld_alpha=None, f_divergence_type="reverse_kl",
        use_weighting=False, aux_loss_enabled=False, precompute_ref_logps=True, args=SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros(len(mask), STRIDE + 1, dtype=torch.long),
        "attention_mask": torch.ones(len(mask), STRIDE + 1, dtype=torch.long),
        "completion_mask": torch.nn.functional.pad(mask.long(), (1, 0)),
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    return with_gradient(DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False), per_token)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", DPO.losses)
def test_a_loss_of_dpo_is_trls(per_token: Tensor, reference: Tensor, name: str, beta: float) -> None:
    smoothing = 0.2 if name in DPO.smoothed - {"sigmoid"} else 0.0  # TRL's sigmoid does not read it
    found = ours(name, per_token, reference, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(found, dpo_of_trl(name, per_token, reference, beta, smoothing), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", [*CPO.losses, "simpo"])
def test_a_loss_without_reference_is_that_of_trls_cpo(per_token: Tensor, name: str, smoothing: float) -> None:
    sums = (per_token * MASK).sum(-1)
    said = sums / LENGTHS if name in ("ipo", "simpo") else sums
    smoothing = smoothing if name in CPO.smoothed | {"simpo"} else 0.0
    trainer: Any = SimpleNamespace(
        alpha=0.0,
        beta=0.5,
        loss_type=name,
        simpo_gamma=0.3,
        label_smoothing=smoothing,
        accelerator=Accelerator(cpu=True),
    )
    expected = CPOTrainer.cpo_loss(trainer, said[:, 0], said[:, 1])[0].mean()
    found = ours(name, per_token, torch.zeros(LENGTHS.shape), beta=0.5, label_smoothing=smoothing, gamma=0.3)
    torch.testing.assert_close(found, with_gradient(expected, per_token), atol=1e-5, rtol=1e-5)


def test_the_odds_ratio_is_that_of_trls_orpo(per_token: Tensor) -> None:
    said = (per_token * MASK).sum(-1) / LENGTHS
    trainer: Any = SimpleNamespace(beta=0.3, accelerator=Accelerator(cpu=True))
    expected = -ORPOTrainer.odds_ratio_loss(trainer, said[:, 0], said[:, 1])[0].mean()
    found = ours("odds_ratio", per_token, torch.zeros(LENGTHS.shape), beta=0.3)
    torch.testing.assert_close(found, with_gradient(expected, per_token), atol=1e-5, rtol=1e-5)


def test_tokens_that_are_certain_have_odds_that_are_numbers() -> None:
    log_probs = torch.tensor([[0.0, -3.0], [-2.0, 0.0]], requires_grad=True)
    loss = LOSSES["odds_ratio"](Pairs(log_probs, torch.zeros(2, 2), torch.ones(2, 2)), Weights(0.1)).mean()
    loss.backward()
    assert loss.isfinite() and log_probs.grad.isfinite().all()


def test_methods_offer_losses_that_there_are() -> None:
    methods = [method for method in METHODS.values() if isinstance(method, FromPairs)]
    offered = {name for method in methods for name in method.losses}
    assert offered == set(LOSSES)
    assert all(method.smoothed <= set(method.losses) for method in methods)
