"""Log-probabilities at the positions asked about, and the entropy there."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from training.losses import log_probs
from training.losses.log_probs import asked_of, token_log_probs


@pytest.mark.parametrize("piece", [1, 1 << 26], ids=["in pieces", "at once"])
def test_they_are_those_of_the_models_distribution(tiny: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(log_probs, "PIECE", piece)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.randint(5, 60, (2, 9))
    positions, wanted = asked_of(ids.masked_fill(torch.arange(9) < 4, -100))
    said = token_log_probs(model, {"input_ids": ids}, positions, wanted, temperature=0.7, entropy=True)

    with torch.no_grad():
        expected = torch.distributions.Categorical(logits=model(ids).logits[positions] / 0.7)
    torch.testing.assert_close(said.log_probs.detach(), expected.log_prob(wanted))
    torch.testing.assert_close(said.entropy, expected.entropy())
    assert torch.equal(said.correct, expected.logits.argmax(-1) == wanted)


def test_tokens_that_cannot_come_have_no_part_in_the_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    _, _, entropy = log_probs._judged(logits, torch.tensor([0]), temperature=1.0, entropy=True)
    assert entropy.item() == pytest.approx(torch.tensor(2.0).log().item())
