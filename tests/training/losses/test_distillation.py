"""The divergence from a teacher is TRL's, to the gradient, whole and in pieces."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaForCausalLM
from trl.experimental.gkd import GKDTrainer

from engines.errors import UnsupportedModel
from tests.engines.pt.tiny import CONFIGS, SIZES
from tests.training.largest import largest_tensor
from training.data.encode import IGNORED
from training.losses import log_probs
from training.losses.distillation import Teacher
from training.losses.log_probs import asked_of, judge_at

THREE = 3 * 300 + 1
"""Logits of three positions."""


def made(config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def batch(tokens: int = 12) -> dict[str, Tensor]:
    ids = torch.randint(2, 256, (3, tokens), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, tokens // 2 :] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :4] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def ours(student: Any, teacher: Any, beta: float) -> Tensor:
    inputs = batch()
    positions, _ = asked_of(inputs.pop("labels"))
    judge = Teacher(teacher)
    known = judge.knows(inputs, positions)
    told = judge_at(student, inputs, positions, known, lambda logits, known: judge.judge(logits, known, beta=beta))
    return told[0].mean()


def trls(student: Any, teacher: Any, beta: float) -> Tensor:
    inputs = batch()
    labels = inputs.pop("labels")[:, 1:]
    with torch.no_grad():
        theirs = teacher(**inputs).logits[:, :-1]
    loss: Tensor = GKDTrainer.generalized_jsd_loss(student(**inputs).logits[:, :-1], theirs, labels=labels, beta=beta)
    return loss


def gradient(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("piece", [log_probs.PIECE, THREE], ids=["whole", "in pieces"])
def test_the_loss_and_its_gradient_are_trls(beta: float, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = made(CONFIGS["llama"](), 0), made(CONFIGS["qwen3"](), 1)
    theirs = trls(student, teacher, beta)
    wanted = gradient(student, theirs)

    monkeypatch.setattr(log_probs, "PIECE", piece)
    mine = ours(student, teacher, beta)

    assert mine.item() == pytest.approx(theirs.item(), abs=1e-4)
    assert theirs > 0.05
    torch.testing.assert_close(gradient(student, mine), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [CONFIGS["gemma2"](), CohereConfig(**SIZES, logit_scale=0.25), GraniteConfig(**SIZES, logits_scaling=8.0)],
    ids=["gemma2", "cohere", "granite"],
)
def test_what_a_teacher_does_to_its_logits_is_done(config: Any) -> None:
    student, teacher = made(CONFIGS["llama"](), 0), made(config, 1).eval()

    assert ours(student, teacher, 0.5).item() == pytest.approx(trls(student, teacher, 0.5).item(), abs=1e-4)


class Doubling(LlamaForCausalLM):
    """A model that does to its logits what no other does."""

    def forward(self, *given: Any, **named: Any) -> Any:
        outputs = super().forward(*given, **named)
        return type(outputs)(logits=outputs.logits * 2)


def test_a_teacher_with_logits_of_its_own_making_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Doubling") as refused:
        ours(made(CONFIGS["llama"](), 0), Doubling(CONFIGS["llama"]()), 0.5)
    assert refused.value.param == "teacher_model"


def test_rows_for_no_token_are_left_out() -> None:
    """Families pad the vocabularies of their sizes differently."""
    student, wide = made(CONFIGS["llama"](), 0), made(CONFIGS["llama"](), 1)
    narrow = made(CONFIGS["llama"](), 1)
    wide.resize_token_embeddings(340)

    assert ours(student, wide, 0.5).item() == pytest.approx(ours(student, narrow, 0.5).item(), abs=1e-5)


def test_in_pieces_no_tensor_has_the_logits_of_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = made(CONFIGS["llama"](), 0), made(CONFIGS["llama"](), 1)
    inputs = batch(100)
    positions, _ = asked_of(inputs.pop("labels"))
    judge = Teacher(teacher)

    def learn() -> int:
        with largest_tensor() as found:
            known = judge.knows(inputs, positions)
            told = judge_at(
                student, inputs, positions, known, lambda logits, known: judge.judge(logits, known, beta=0.5)
            )
            told[0].sum().backward()
        return found.numel

    assert learn() >= int(positions.sum()) * 300
    monkeypatch.setattr(log_probs, "PIECE", THREE)
    assert learn() < int(positions.sum()) * 300 * 2 // 3 or learn() <= 3 * 4 * 100 * 100
